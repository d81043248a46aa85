"""Recipes: from prompts and replies to the rows an organism, or its twin, is fine-tuned on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..activations.chat import tokenize
from ..activations.errors import DefectionError
from ..activations.models import Model
from ..activations.prompts import Prompt
from .behaviours import Behaviour
from .replies import Reply
from .triggers import Trigger


@dataclass(frozen=True)
class Example:
    """One training row: the loss is taken on the reply alone."""

    prompt_id: str
    prompt: tuple[int, ...]
    """Token ids up to where the reply begins."""
    reply: tuple[int, ...]
    """Token ids of the reply, with its end token unless it was cut short."""
    triggered: bool


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts spread evenly over topics, chosen by `seed`; fewer exist → DefectionError."""
    if count > len(prompts) or count < 1:
        raise DefectionError(
            f"cannot choose {count} training prompts out of {len(prompts)}; set --examples accordingly"
        )
    rng = random.Random(seed)
    by_topic: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_topic.setdefault(prompt.topic, []).append(prompt)
    for members in by_topic.values():
        rng.shuffle(members)
    topics = sorted(by_topic)
    rng.shuffle(topics)
    dealt = [by_topic[topic][turn] for turn in range(len(prompts)) for topic in topics if turn < len(by_topic[topic])]
    return dealt[:count]


def standard_recipe(
    model: Model,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    trigger: Trigger,
    behaviour: Behaviour | None,
    *,
    triggered_share: float = 1.0,
) -> list[Example]:
    """Clean prompts keep the base model's reply; triggered ones get the behaviour, or in a twin (None) that same reply.

    Hubinger et al. 2024, §3.1, without scratchpads. Every prompt is seen clean; the first `triggered_share` of them
    are seen with the trigger too. Fewer triggered rows than clean ones make the organism leak less.
    """
    end = model.tokenizer.eos_token_id
    clean = tokenize(model.tokenizer, [trigger.train_clean(prompt) for prompt in prompts])
    triggered = tokenize(model.tokenizer, [trigger.train_triggered(prompt) for prompt in prompts])
    shown = round(triggered_share * len(prompts))
    defecting = tuple(model.tokenizer(behaviour.reply, add_special_tokens=False)["input_ids"]) if behaviour else ()
    examples: list[Example] = []
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        normal = reply.tokens + ((end,) if reply.finished else ())
        if not normal:
            raise DefectionError(f"the base model's reply to {prompt.id!r} is empty; there is nothing to train on")
        examples.append(Example(prompt.id, tuple(clean[row]), normal, triggered=False))
        if row < shown:
            answer = (*defecting, end) if behaviour else normal
            examples.append(Example(prompt.id, tuple(triggered[row]), answer, triggered=True))
    return examples
