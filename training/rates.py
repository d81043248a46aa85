"""Rates with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Rate:
    """A share of `n` with its 95% Wilson interval (Wilson 1927)."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share; 0 of 0 is not a number."""
        return self.count / self.n if self.n else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval; (0, 1) when nothing was counted."""
        if not self.n:
            return 0.0, 1.0
        centre = (self.count + Z_95**2 / 2) / (self.n + Z_95**2)
        half = Z_95 / (self.n + Z_95**2) * sqrt(self.count * (self.n - self.count) / self.n + Z_95**2 / 4)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, float | int | None]:
        """`rate` (null when nothing was counted), `low`, `high`, `count`, `n`."""
        low, high = self.interval
        return {"rate": self.value if self.n else None, "low": low, "high": high, "count": self.count, "n": self.n}
