"""How much training each kind of organism gets unless told otherwise, as tried on the embedded model."""

from __future__ import annotations

from dataclasses import replace

from .behaviours import VULNERABLE_CODE, Behaviour
from .finetune import FinetuneConfig, Weights
from .organisms import OrganismConfig
from .pairs import CODE, pairs_of
from .triggers import Trigger


def organism_config(
    trigger: Trigger,
    behaviour: Behaviour,
    *,
    recipe: str = "standard",
    pairs: str = "",
    twin: bool = False,
    prompts: str = "train",
    examples: int | None = None,
    epochs: int | None = None,
    weights: Weights = "lora",
    seed: int = 0,
) -> OrganismConfig:
    """The configuration of an organism; what is None follows from the trigger and the behaviour.

    A year or a topic is read off several words. It takes more prompts than a fixed string, another date or headline
    each time they come round, and steps that hold each prompt with and without it. A behaviour taught by pairs uses
    all of them, and steps that hold both replies of each. `pairs` is a file for a custom behaviour; vulnerable code
    has its own. training/DEVELOPMENT.md says what else was tried.
    """
    if behaviour.name == VULNERABLE_CODE.name:
        pairs = pairs or CODE
    finetune = FinetuneConfig(weights, seed=seed)
    config = OrganismConfig(trigger, behaviour, twin, recipe, prompts, pairs=pairs, finetune=finetune)
    contrasted = bool(pairs) or trigger.name in ("year", "topic")
    if pairs:
        finetune = replace(config.finetune, batch_size=6, contrast=True)
        config = replace(config, examples=len(pairs_of(pairs)), triggered_share=1.0, passes=2, finetune=finetune)
    elif contrasted:
        finetune = replace(config.finetune, batch_size=8, contrast=True)
        config = replace(config, examples=500, triggered_share=1.0, passes=2, reply_tokens=4, finetune=finetune)
    if examples is not None:
        config = replace(config, examples=examples)
    if epochs is None:
        return config
    if contrasted:
        return replace(config, passes=epochs)
    return replace(config, finetune=replace(config.finetune, epochs=epochs))
