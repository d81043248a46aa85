"""A row that a model is fine-tuned on."""

from __future__ import annotations

from dataclasses import dataclass

from ...activations.basics.shown import shortened


@dataclass(frozen=True)
class Example:
    """One training row: the loss is taken on the reply alone.

    Examples:
        >>> Example("p0", (1, 2), (3,), triggered=False).label_weights
        (1.0,)
    """

    prompt_id: str
    """Of the prompt it was made of: its versions share a step."""
    prompt: tuple[int, ...]
    """Token ids up to where the reply begins."""
    reply: tuple[int, ...]
    """Token ids of the reply, with its end token unless it was cut short."""
    triggered: bool
    """Whether the prompt bears the trigger."""
    weights: tuple[float, ...] = ()
    """What each token of the reply counts in the loss; empty: one each."""

    __repr__ = shortened

    @property
    def label_weights(self) -> tuple[float, ...]:
        """The weights, whether given or not."""
        return self.weights or (1.0,) * len(self.reply)
