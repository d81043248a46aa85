"""Which organisms a study has, how far each is, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ...activations.basics.files import Json
from ...training.organisms.build import RECIPES
from .cell import Cell, times
from .grid import Study

TRAIN_SECONDS_A_ROW, MEASURE_SECONDS_A_PROMPT = 0.22, 0.25
"""Of the embedded model on two CPU cores, for an estimate before anything was run: one row through one epoch, and one
prompt through all three models."""


def list_study(opened: Study, only: Sequence[str] = ()) -> Json:
    """Each organism with its state, the seconds it took or is expected to take, and the seconds that are left."""
    factor = _factor(opened.named())
    rows = []
    for cell in opened.named(only):
        took, expected = times(cell), _nominal(cell) * factor
        state = _state(opened, cell)
        left = 0.0 if state == "done" else max(0.0, expected - sum(took.values()))
        rows.append(
            {"organism": cell.organism.name, "role": cell.organism.role, "state": state, **took, "left": round(left)}
        )
    missing = [family.name for family in opened.manifest.families if not family.prompts]
    return {
        "study": opened.manifest.name,
        "configuration": opened.configuration,
        "choice": opened.choice or None,
        "families_without_prompts": missing,
        "organisms": rows,
        "seconds_left": sum(row["left"] for row in rows),
        "estimate": "scaled to the organisms that are done" if factor != 1 else "two CPU cores, not measured here",
    }


def study_lines(listed: Json) -> list[str]:
    """The list for a person to read."""
    rows = listed["organisms"]
    width = max(len(row["organism"]) for row in rows)
    lines = [f"{row['organism']:<{width}}  {row['role']:<11}  {row['state']:<10}  {_minutes(row)}" for row in rows]
    left = [f"about {listed['seconds_left'] / 60:.0f} min left for one process ({listed['estimate']})"]
    for name in listed["families_without_prompts"]:
        left.append(f"family {name!r} has no prompts and is left out; give them with --family {name}=PATH")
    chosen = listed["choice"]
    return [*lines, f"choice: {chosen[:16] if chosen else 'not made yet'}", *left]


def _minutes(row: Json) -> str:
    took = sum(row.get(name, 0.0) for name in ("train", "measure"))
    return f"{took / 60:.1f} min" + (f", about {row['left'] / 60:.1f} left" if row["left"] else "")


def _state(opened: Study, cell: Cell) -> str:
    if opened.is_finished(cell):
        return "done"
    return "trained" if cell.trained() else "started" if cell.folder.exists() else "to do"


def _nominal(cell: Cell) -> float:
    """Seconds for training both models and measuring three, at the rates of the embedded model."""
    config = cell.config(twin=False)
    times = config.finetune.epochs * config.passes * len(RECIPES[config.recipe])
    rows = config.examples * (1 + config.triggered_share) * times
    prompts = sum(2 * (family.limit or 100) for family in cell.families)
    return 2 * rows * TRAIN_SECONDS_A_ROW + prompts * MEASURE_SECONDS_A_PROMPT


def _factor(cells: Sequence[Cell]) -> float:
    """How much longer than at those rates the finished steps took; 1 before there are any."""
    known = [
        sum(took.values()) / _nominal(cell) for cell in cells if {"train", "measure"} <= (took := times(cell)).keys()
    ]
    return fmean(known) if known else 1.0
