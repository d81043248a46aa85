"""What `defection study` does: run a manifest, list its cells with their state and time, write the results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..activations.files import Json, read_json
from ..training.organisms import RECIPES
from .study import Study
from .study_cell import Cell
from .study_manifest import DEVELOPMENT, TEST, read_manifest
from .study_work import Say

TRAIN_SECONDS_A_ROW, MEASURE_SECONDS_A_PROMPT = 0.22, 0.25
"""Of the embedded model on two CPU cores, for an estimate before anything was run: one row through one epoch, and one
prompt through all three models."""


def open_study(path: Path, out: Path, *, families: Sequence[str] = (), device: str = "auto") -> Study:
    """The study of a manifest; DefectionError when it is not a good one."""
    return Study(read_manifest(path, families), out, device)


def run_study(study: Study, results: Path, command: str, say: Say, *, only_results: bool = False) -> Json:
    """Run what is left of it, unless only results of what is done are wanted; write them and give their summary."""
    from .study_results import write_results

    if not only_results:
        study.run(say)
    return write_results(study, results, command)


def reproducing_command(path: Path, families: Sequence[str]) -> str:
    """What to type to get the same numbers."""
    parts = ["defection", "study", str(path), "--out", "DIR"]
    for given in families:
        parts += ["--family", given]
    return shlex.join(parts)


def list_study(study: Study) -> dict[str, Any]:
    """Every organism with its state, the seconds it took or is expected to take, and the seconds that are left."""
    cells = [(role, cell) for role in (DEVELOPMENT, TEST) for cell in study.cells(role)]
    factor = _factor([cell for _, cell in cells])
    rows = []
    for role, cell in cells:
        took, expected = _took(cell), _nominal(cell) * factor
        state = _state(study, cell)
        left = 0.0 if state == "done" else max(0.0, expected - sum(took.values()))
        rows.append({"organism": cell.organism.name, "role": role, "state": state, **took, "left": round(left)})
    missing = [family.name for family in study.manifest.families if not family.prompts]
    return {
        "study": study.manifest.name,
        "configuration": study.configuration,
        "choice": study.choice or None,
        "families_without_prompts": missing,
        "organisms": rows,
        "seconds_left": sum(row["left"] for row in rows),
        "estimate": "scaled to the organisms that are done" if factor != 1 else "two CPU cores, not measured here",
    }


def study_lines(listed: dict[str, Any]) -> list[str]:
    """The list for a person to read."""
    rows = listed["organisms"]
    width = max(len(row["organism"]) for row in rows)
    lines = [f"{row['organism']:<{width}}  {row['role']:<11}  {row['state']:<10}  {_minutes(row)}" for row in rows]
    left = [f"about {listed['seconds_left'] / 60:.0f} min left for one process ({listed['estimate']})"]
    for name in listed["families_without_prompts"]:
        left.append(f"family {name!r} has no prompts and is left out; give them with --family {name}=PATH")
    chosen = listed["choice"]
    return [*lines, f"choice: {chosen[:16] if chosen else 'not made yet'}", *left]


def _minutes(row: dict[str, Any]) -> str:
    took = sum(row.get(name, 0.0) for name in ("train", "measure"))
    return f"{took / 60:.1f} min" + (f", about {row['left'] / 60:.1f} left" if row["left"] else "")


def _state(study: Study, cell: Cell) -> str:
    if study.is_finished(cell):
        return "done"
    return "trained" if cell.trained() else "started" if cell.folder.exists() else "to do"


def _took(cell: Cell) -> dict[str, float]:
    path = cell.folder / "times.json"
    return dict(read_json(path)) if path.exists() else {}


def _nominal(cell: Cell) -> float:
    """Seconds for training both models and measuring three, at the rates of the embedded model."""
    config = cell.config(twin=False)
    rows = config.examples * (1 + config.triggered_share) * config.finetune.epochs * len(RECIPES[config.recipe])
    prompts = sum(2 * (family.limit or 100) for family in cell.families)
    return 2 * rows * TRAIN_SECONDS_A_ROW + prompts * MEASURE_SECONDS_A_PROMPT


def _factor(cells: Sequence[Cell]) -> float:
    """How much longer than at those rates the finished steps took; 1 before there are any."""
    known = [
        sum(took.values()) / _nominal(cell) for cell in cells if {"train", "measure"} <= (took := _took(cell)).keys()
    ]
    return fmean(known) if known else 1.0
