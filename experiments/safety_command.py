"""`defection safety-train`: one organism through one stage, or several through a schedule, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..activations.errors import DefectionError
from ..activations.files import Json, write_json, write_text
from ..training.persistence import Point, persistence, points, to_table
from ..training.records import read_organism
from ..training.safety import Measuring, Stage, safety_train
from .evaluation import default_sets, evaluation_prompts
from .persistence_figure import save_persistence_figure

RATES = ("trigger_rate", "leak_rate", "near_miss_rate")
LIMIT = 24
"""Prompts a set on which an organism is measured after each stage unless told otherwise."""


def train_for_safety(
    organisms: Sequence[str],
    schedule: Sequence[Stage],
    out: Path,
    *,
    prompts: Sequence[str] | None = None,
    limit: int | None = LIMIT,
    device: str = "auto",
) -> Json:
    """One organism and one stage: the organism that comes of it, in `out`.

    Otherwise a folder an organism under `out` with a folder a stage in it, `persistence.json`, `persistence.csv`, and
    the picture under `figures/`.
    """
    measuring = {organism: _measuring(organism, prompts, limit) for organism in organisms}
    if len(organisms) == 1 and len(schedule) == 1:
        organism = organisms[0]
        record = safety_train(organism, schedule[0], out, measuring[organism], device=device)
        rows = points(record, Path(organism).name, measuring[organism])
        own = [row for row in rows if row.steps >= rows[-1].steps - _steps(schedule[0])]
        return {"path": str(out), "points": [asdict(row) for row in own]}
    names = organism_names(organisms)
    directories = dict(zip(names, organisms, strict=True))
    by_name = {name: measuring[directory] for name, directory in directories.items()}
    rows = persistence(directories, schedule, out, by_name, device=device)
    record = {
        "schema_version": 1,
        "schedule": [{"stage": stage.name, **stage.to_json()} for stage in schedule],
        "organisms": directories,
        "points": [asdict(row) for row in rows],
    }
    write_json(out / "persistence.json", record)
    write_text(out / "persistence.csv", to_table(rows))
    pictures = save_persistence_figure(rows, out / "figures")
    return {"path": str(out), "figures": [str(path) for path in pictures], "points": record["points"]}


def _measuring(organism: str, prompts: Sequence[str] | None, limit: int | None) -> Measuring:
    sets = tuple(prompts or default_sets(read_organism(organism).behaviour))
    return Measuring(evaluation_prompts(sets, limit))


def _steps(stage: Stage) -> int:
    return sum(part.steps for part in stage.parts())


def organism_names(organisms: Sequence[str]) -> list[str]:
    """What tables call the organisms: the folder's name, with its parent's where that is not enough."""
    if len(set(organisms)) < len(organisms):
        raise DefectionError("the same organism is given twice; name each once")
    short = [Path(organism).resolve().name for organism in organisms]
    if len(set(short)) == len(short):
        return short
    long = ["-".join(Path(organism).resolve().parts[-2:]) for organism in organisms]
    if len(set(long)) < len(long):
        raise DefectionError(f"two organisms are both called {max(long, key=long.count)!r}; rename one of the folders")
    return long


def safety_lines(result: Json) -> list[str]:
    """The points, one a line, for a person to read."""
    rows = [Point(**row) for row in result["points"]]
    lines = []
    for row in rows:
        values = asdict(row)
        said = [f"{rate.replace('_', ' ')} {_rate(values, rate)}" for rate in RATES]
        lines.append(f"{row.organism}, {row.stage} ({row.steps} steps): {', '.join(said)}")
    return [*lines, *result.get("figures", []), result["path"]]


def _rate(values: Json, name: str) -> str:
    low, high = values[f"{name}_low"], values[f"{name}_high"]
    return "–" if values[name] is None else f"{values[name]:.3f} ({low:.3f}–{high:.3f})"
