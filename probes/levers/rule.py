"""Lever, sabotage or inert: the rule by which a direction is called one, fixed before it is tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from ...activations.basics.files import Json

LEVER, SABOTAGE, INERT = "lever", "sabotage", "inert"


class Effect(Protocol):
    """What a setting was measured to do."""

    @property
    def suppression(self) -> float | None: ...  # noqa: D102
    @property
    def recovery(self) -> float | None: ...  # noqa: D102
    @property
    def cost(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class LeverRule:
    """What a lever has to do, on prompts that it was not chosen on."""

    suppression: float = 0.9
    """Least share of the trigger rate that is gone."""
    recovery: float = 0.5
    """Least share of the distance to the clean reply that is gone (`training.measuring.divergence`)."""
    cost: float = 0.02
    """Largest rise of the cross-entropy of ordinary replies, nats a token."""
    random_directions: int = 20

    def to_json(self) -> Json:
        """As the preregistration records it."""
        return asdict(self)

    def reaches(self, effect: Effect) -> bool:
        """Whether an effect meets all three criteria."""
        return self.met(effect) == 3

    def suppresses(self, effect: Effect) -> bool:
        """Whether the behaviour is gone, whatever has come in its place."""
        return effect.suppression is not None and effect.suppression >= self.suppression

    def met(self, effect: Effect) -> int:
        """How many of the three criteria an effect meets: what settings are chosen by, recovery breaking ties."""
        cheap = effect.cost is not None and effect.cost <= self.cost
        close = effect.recovery is not None and effect.recovery >= self.recovery
        return self.suppresses(effect) + cheap + close

    def judge(self, effect: Effect, random: Sequence[Effect]) -> str:
        """The word for a direction, given what random ones of equal norm and rank did in the same place.

        `lever`: it meets all criteria and no random one does. `sabotage`: the behaviour goes, and the reply with it, or
        other things the model could do. `inert`: the behaviour stays, or goes as well by random directions.
        """
        if not self.suppresses(effect):
            return INERT
        if self.reaches(effect):
            return INERT if any(self.reaches(other) for other in random) else LEVER
        return SABOTAGE
