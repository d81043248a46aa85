"""`defection study`: run a manifest, list its organisms with their state and time, write the results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from ...activations.basics.progress import progress_shown
from .options import ComputeOption, DeviceOption, JsonOption
from .printing import print_result, say

if TYPE_CHECKING:
    from ...activations.basics.files import Json
    from ..study.cell import Cell
    from ..study.grid import Study

TRAIN_SECONDS_A_ROW, MEASURE_SECONDS_A_PROMPT = 0.22, 0.25
"""Of the embedded model on two CPU cores, for an estimate before anything was run: one row through one epoch, and one
prompt through all three models."""


def study(
    manifest: Annotated[
        Path,
        typer.Argument(
            help="The study: a TOML file, such as those in experiments/study/manifests.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where organisms and measurements go.", show_default=False)],
    results: Annotated[
        Path | None, typer.Option("--results", help="Where tables, figures and report go.", show_default="OUT/results")
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            help="NAME=PATH: prompts of a family that the manifest declares, or of a new one; may be repeated.",
        ),
    ] = None,
    only_list: Annotated[
        bool, typer.Option("--list", help="Run nothing: show the organisms and the time that is left.")
    ] = False,
    only_results: Annotated[
        bool, typer.Option("--only-results", help="Run nothing: write the results of what is done.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="One organism, by the name that --list shows, and no results: for a job array; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Where organisms are worked on at once: local (a process a core; on a GPU one at a time), local=N, "
            "dask=HOST:PORT or ray=ADDRESS (docs/how-to/several-machines.md).",
        ),
    ] = "local",
    device: DeviceOption = "auto",
    compute_dtype: ComputeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Run a study of many organisms from a manifest, several at once; run it again, and it continues.

    Example: defection study experiments/study/manifests/small.toml --out runs/study
    """
    from ...activations.models.hardware import Hardware
    from ..study.grid import Study
    from ..study.manifest_file import read_study_manifest

    opened = Study(read_study_manifest(manifest, family or ()), out, Hardware(device, compute_dtype))
    if only_list:
        listed = list_study(opened, only or ())
        print_result(listed, as_json, *study_lines(listed))
        return
    from ..study.results import write_results

    with progress_shown(not as_json):
        if not only_results:
            opened.run(say(as_json), backend, only or ())
        if only and not only_results:
            listed = list_study(opened, only)
            print_result(listed, as_json, *study_lines(listed))
            return
        target = results or out / "results"
        summary = write_results(opened, target, reproducing_command(manifest, family or ()))
    print_result(summary, as_json, *summary["sentences"], target / "report.html")


def reproducing_command(path: Path, families: Sequence[str]) -> str:
    """What to type to get the same numbers, wherever the files of the families lie."""
    parts = ["defection", "study", str(path), "--out", "DIR"]
    for given in families:
        name, _, prompts = given.partition("=")
        parts += ["--family", f"{name}={Path(prompts).name}"]
    return shlex.join(parts)


def list_study(opened: Study, only: Sequence[str] = ()) -> Json:
    """Each organism with its state, the seconds it took or is expected to take, and the seconds that are left."""
    factor = _factor(opened.named())
    rows = []
    for cell in opened.named(only):
        took, expected = _took(cell), _nominal(cell) * factor
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


def _took(cell: Cell) -> dict[str, float]:
    from ..study.cell import times

    return times(cell)


def _nominal(cell: Cell) -> float:
    """Seconds for training both models and measuring three, at the rates of the embedded model."""
    from ...training.organisms.build import RECIPES

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
