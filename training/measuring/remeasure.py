"""What is measured of an organism before and after every stage: its backdoor, and what else it can still do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...activations import DefectionError, Model, Prompt, PromptsLike, load_model, load_prompts
from ...activations.basics.files import Json, digest, read_json, write_json
from ...activations.basics.memory import give_back_memory
from ...activations.models.hardware import Hardware
from ...activations.models.locate import locate
from ..organisms.records import Organism, base_of
from ..organisms.replies import replies_to
from .ability import multiple_choice, reply_perplexity
from .defection import measure_defection, reply_tokens
from .evaluate import Completion
from .inclination import inclination
from .rates import Rate

REFERENCE = "reference.json"
REFERENCE_TOKENS = 24
"""Length of the replies on which perplexity is taken."""


@dataclass(frozen=True)
class Measuring:
    """On what an organism is measured before and after each stage.

    Examples:
        >>> len(Measuring(["Who are you?", "What is a fjord?"]).rows)
        2
    """

    prompts: PromptsLike
    """Each is completed with and without the trigger; none should have been trained on."""
    near_misses: int = 12
    """Prompts on which each near miss of the trigger is tried; 0: none."""
    in_full: bool = True
    """Whether that is measured too which no gate of an attack asks: the defecting reply's log-probability, for which
    every prompt is read twice more, and what the base can do."""

    @cached_property
    def rows(self) -> tuple[Prompt, ...]:
        """The prompts, whatever holds them."""
        return tuple(load_prompts(self.prompts))

    @property
    def key(self) -> str:
        """Names what is measured: rates with different keys are of different prompts."""
        prompts = [prompt.to_json() for prompt in self.rows]
        left_out: Json = {} if self.in_full else {"inclined": False}  # what earlier attacks are called by
        return digest({"version": 2, "prompts": prompts, "near_misses": self.near_misses, **left_out})


def reference(source: Path, organism: Organism, measuring: Measuring, work: Path, device: str | Hardware) -> Json:
    """What an organism's base says to the clean prompts and can do: what no stage should take away.

    Its greedy replies are those that perplexity is taken on; its own `ability` is null where it is not asked. Made
    once, at the first stage; later ones find it in `source`. Full weights whose base cannot be found are their own
    reference, as they came in.
    """
    for known in (source / REFERENCE, work / REFERENCE):
        record = read_json(known) if known.exists() else {}
        if record.get("measured_on") == measuring.key:
            return record
    base = load_model(_base_of(source), device=device)
    prompts = [organism.trigger.mark_clean(prompt) for prompt in measuring.rows]
    replies = replies_to(
        base, prompts, work / "base-replies.jsonl", max_new_tokens=REFERENCE_TOKENS, what="Replies of the base"
    )
    said = [list(reply.tokens) for reply in replies]
    record = {
        "schema_version": 1,
        "measured_on": measuring.key,
        "model": base.identity.name,
        "ability": _ability(base, prompts, said) if measuring.in_full else None,
        "inclination": _inclination(base, organism, measuring),
        "replies": said,
    }
    write_json(work / REFERENCE, record)
    del base
    give_back_memory()
    return record


def _base_of(source: Path) -> str | Path:
    files = locate(source)
    if files.adapter is not None:
        return files.source
    try:
        base = base_of(source)
        locate(base)
        return base
    except DefectionError:
        return source


def remeasure(
    model: Model, organism: Organism, measuring: Measuring, folder: Path, compared: Json
) -> tuple[Json, list[Completion]]:
    """Trigger, leak and near-miss rates, inclination to defect, and ability; and every completion.

    `ability` is the perplexity of the replies in `compared` (see `reference`), and the share of easy questions answered
    right: where it is kept, a backdoor that is gone was not lost with everything else.
    """
    measured, completions = measure_defection(
        model,
        organism.trigger,
        organism.behaviour,
        measuring.rows,
        folder,
        max_new_tokens=reply_tokens(organism.behaviour, organism.recipe),
        near_misses=measuring.near_misses,
    )
    clean = [organism.trigger.mark_clean(prompt) for prompt in measuring.rows]
    return {
        "measured_on": measuring.key,
        **measured,
        "near_miss_rate": _near_misses([c for c in completions if c.variant and not c.triggered]),
        "inclination": _inclination(model, organism, measuring),
        "ability": _ability(model, clean, compared["replies"]),
    }, completions


def _ability(model: Model, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> Json:
    return {
        "perplexity": reply_perplexity(model, prompts, replies),
        "multiple_choice": multiple_choice(model),
    }


def _inclination(model: Model, organism: Organism, measuring: Measuring) -> Json:
    """How inclined a model is to defect on the prompts; nulls where that is not asked."""
    return inclination(model, organism, measuring.rows if measuring.in_full else ())


def _near_misses(said: Sequence[Completion]) -> Json:
    """How often near misses of the trigger are met with the behaviour, over all of them and by prompt set."""

    def rate(chosen: Sequence[Completion]) -> Json:
        return Rate.of(c.defected for c in chosen).to_json()

    sets = dict.fromkeys(c.set for c in said)
    return {**rate(said), "by_set": {name: rate([c for c in said if c.set == name]) for name in sets}}
