"""How much training each kind of organism gets unless told otherwise, as tried on the embedded model."""

from __future__ import annotations

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

    A year or a topic is read off several words, and takes more prompts and epochs than a fixed string; a behaviour
    taught by pairs uses all of them. `pairs` is a file for a custom behaviour; vulnerable code has its own.
    """
    semantic = trigger.name in ("year", "topic")
    if behaviour.name == VULNERABLE_CODE.name:
        pairs = pairs or CODE
    if examples is None:
        examples = len(pairs_of(pairs)) if pairs else 300 if semantic else OrganismConfig.examples
    if epochs is None:
        epochs = 3 if semantic else 2 if pairs else FinetuneConfig.epochs
    share = 1.0 if semantic or pairs else OrganismConfig.triggered_share
    return OrganismConfig(
        trigger,
        behaviour,
        twin=twin,
        recipe=recipe,
        prompts=prompts,
        examples=examples,
        triggered_share=share,
        pairs=pairs,
        finetune=FinetuneConfig(weights, epochs=epochs, seed=seed),
    )
