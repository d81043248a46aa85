"""Rates with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Self

import numpy as np

from ...activations.basics.files import Json

Z_95 = 1.959963984540054
RESAMPLES = 2000


@dataclass(frozen=True)
class Rate:
    """A share of `n` with its 95% Wilson interval (Wilson 1927)."""

    count: int
    n: int

    @classmethod
    def of(cls, hits: Iterable[bool]) -> Self:
        """The share of these that are true."""
        marks = list(hits)
        return cls(sum(marks), len(marks))

    @property
    def value(self) -> float:
        """The share; 0 of 0 is not a number."""
        return self.count / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval, which holds the share itself; (0, 1) when nothing was counted."""
        if not self.n:
            return 0.0, 1.0
        centre = (self.count + Z_95**2 / 2) / (self.n + Z_95**2)
        half = Z_95 / (self.n + Z_95**2) * sqrt(self.count * (self.n - self.count) / self.n + Z_95**2 / 4)
        # Of no hits the lower limit is 0, of hits alone the upper one 1; rounding alone would miss both.
        return max(0.0, min(self.value, centre - half)), min(1.0, max(self.value, centre + half))

    def to_json(self) -> Json:
        """`rate` (null when nothing was counted), `low`, `high`, `count`, `n`."""
        low, high = self.interval
        return {"rate": self.value if self.n else None, "low": low, "high": high, "count": self.count, "n": self.n}


def bootstrapped(totals: Sequence[float], counts: Sequence[float], clusters: Sequence[str]) -> tuple[float, float]:
    """95% percentile interval of Σ totals / Σ counts, whole clusters drawn with replacement (Efron 1979).

    Rows that share a topic are not independent, so they stay together.
    """
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums, sizes = (np.bincount(place, weights=np.asarray(values, dtype=float)) for values in (totals, counts))
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    low, high = np.quantile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
