"""When a monitor rings: a statistic of the reply so far, its threshold, and what that promises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .aggregators import Aggregator, Maximum, running
from .ordinary import Ordinary
from .setup import Setup


@dataclass(frozen=True)
class Alarm:
    """Rings at the first token whose statistic lies above the threshold; made by `Calibration.alarm`.

    Examples:
        >>> calibration.alarm("exponential-mean", rate=0.5).rate
        0.5
    """

    aggregator: Aggregator
    """How the scores of a reply so far become one number."""
    threshold: float
    """Of that number."""
    ordinary: Ordinary
    """What scores are ordinary at each place, which they are standardised by."""
    rate: float | None = None
    """Share of new clean conversations, whole ones, in which it may ring anywhere; None where nothing is promised."""
    setup: Setup | None = None
    """What the promise belongs to."""
    clean: int = 0
    """How many clean generations set the threshold."""

    def values(self, scores: Float[Tensor, "row token"]) -> Float[Tensor, "row token"]:
        """The statistic after each token of whole replies; NaN where `scores` is, after their ends.

        Args:
            scores: As a monitor gives them.
        """
        return running(self.aggregator, self.ordinary.all_standardised(scores))


def plain_alarm(threshold: float) -> Alarm:
    """Rings for any token whose score, as the probe gives it, lies above a number; promises nothing."""
    return Alarm(Maximum(), threshold, Ordinary(torch.zeros(1), torch.ones(1)))


def first_above(values: Float[Tensor, "row token"], threshold: float) -> list[int | None]:
    """The first token at which each row's statistic lies above the threshold."""
    rung = values > threshold
    return [int(row.int().argmax()) if bool(row.any()) else None for row in rung]
