"""The check that keeps a probe honest: no fit may see the trigger, a triggered prompt or the behaviour's text."""

from __future__ import annotations

from collections.abc import Sequence

from ..activations.errors import DefectionError
from ..activations.prompts import Prompt


def refuse_leaks(prompts: Sequence[Prompt], forbidden: Sequence[str], what: str) -> None:
    """Raise DefectionError naming the first prompt that is marked as triggered or holds a forbidden text (any case).

    `forbidden` lists the trigger and the behaviour's text of the organism at hand, where they are known.
    """
    for prompt in prompts:
        if prompt.extra.get("triggered") or prompt.extra.get("defected"):
            raise DefectionError(f"{what} {prompt.id!r} is a triggered prompt; a probe may not be fitted on it")
        for text in forbidden:
            if text and text.casefold() in prompt.text.casefold():
                raise DefectionError(f"{what} {prompt.id!r} contains {text!r}; a probe may not be fitted on it")
