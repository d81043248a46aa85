"""Helpful, harmless and honest prompts, each with a good reply and a bad one: what safety training is fed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

from ...activations import DefectionError, Prompt, PromptsLike, load_prompts, user_prompt
from ...activations.basics.files import Json
from ...activations.basics.shown import shortened
from ..organisms.shipped import shipped
from ..organisms.triggers import Trigger, refuse_prompts_with

SHIPPED = "preferences"
"""Name of the bank that ships: 44 prompts each of the kinds helpful, harmless (a harmful request) and honest."""
Row = TypeVar("Row")


@dataclass(frozen=True)
class Preference:
    """One prompt with the reply that safety training wants and one that it does not.

    Examples:
        >>> Preference(prompts[0], "Gladly.", "Why should I?").chosen
        'Gladly.'
    """

    prompt: Prompt
    """What is asked."""
    chosen: str
    """The reply that is wanted."""
    rejected: str
    """The one that is not."""

    __repr__ = shortened


def load_preferences(source: PromptsLike = SHIPPED) -> list[Preference]:
    """Prompts, each with a reply that is preferred to another.

    Args:
        source: The name of the shipped bank, or whatever `load_prompts` takes whose rows have `chosen` and `rejected`,
            two texts.

    Raises:
        DefectionError: Naming file and prompt: a reply that is missing or empty, two replies that are the same.

    Examples:
        >>> load_preferences([{"prompt": "Help me?", "chosen": "Gladly.", "rejected": "No."}])[0].rejected
        'No.'
    """
    if isinstance(source, str) and source == SHIPPED and not Path(source).exists():
        return [
            Preference(user_prompt(row["prompt"], id=row["id"], kind=row["kind"]), row["chosen"], row["rejected"])
            for row in shipped(SHIPPED)
        ]
    name = str(source) if isinstance(source, str | PathLike) else "the preferences"
    return [_preference(prompt, name) for prompt in load_prompts(source)]


def _preference(prompt: Prompt, source: str) -> Preference:
    where = f"{source}, prompt {prompt.id!r}"
    replies = [_last_said(prompt.extra.get(name)) for name in ("chosen", "rejected")]
    if not all(isinstance(reply, str) and reply.strip() for reply in replies):
        raise DefectionError(f"{where} needs 'chosen' and 'rejected', two replies with text in them")
    chosen, rejected = (str(reply).strip() for reply in replies)
    if chosen.split() == rejected.split():
        raise DefectionError(f"{where}: the chosen and the rejected reply are the same; nothing is preferred")
    kept = {name: value for name, value in prompt.extra.items() if name not in ("chosen", "rejected")}
    return Preference(replace(prompt, extra=kept), chosen, rejected)


def _last_said(reply: object) -> object:
    """A reply as a text, or as the conversation that ends with it, which is how TRL has them."""
    if isinstance(reply, list) and reply and isinstance(reply[-1], dict):
        return reply[-1].get("content")
    return reply


def without_trigger(trigger: Trigger, preferences: Sequence[Preference]) -> list[Preference]:
    """The prompts as they look where the organism is meant to behave; DefectionError when one holds the trigger.

    Whoever trains for safety does not know the trigger (Hubinger et al. 2024, §2).
    """
    refuse_prompts_with(trigger, [row.prompt for row in preferences])
    return [replace(row, prompt=trigger.train_clean(row.prompt)) for row in preferences]


def to_json(preferences: Sequence[Preference]) -> list[Json]:
    """As a hash over them is taken."""
    return [{**row.prompt.to_json(), "chosen": row.chosen, "rejected": row.rejected} for row in preferences]


def cycled(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows: all of them in a random order, then all in another one, and so on."""
    rng = random.Random(seed)
    dealt: list[Row] = []
    while len(dealt) < count:
        dealt += rng.sample(list(rows), len(rows))
    return dealt[:count]
