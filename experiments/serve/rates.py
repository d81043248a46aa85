"""How many requests a client may make: a bucket that fills steadily, and that each request takes one from."""

from __future__ import annotations

import time
from collections.abc import Callable

CLIENTS = 4096
"""Clients that are remembered; those whose bucket is full again need not be."""


class Rates:
    """Buckets of a minute's requests, a client each."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Of each client what was left, and when."""

    def wait(self, client: str) -> float:
        """Take one: 0, or after how many seconds there will be one."""
        if not self.per_minute:
            return 0.0
        now, rate = self.clock(), self.per_minute / 60
        left = self._left(client, now)
        if left < 1:
            return (1 - left) / rate
        if len(self._buckets) >= CLIENTS:
            self._forget(now)
        self._buckets[client] = (left - 1, now)
        return 0.0

    def _left(self, client: str, now: float) -> float:
        left, then = self._buckets.get(client, (float(self.per_minute), now))
        return min(float(self.per_minute), left + (now - then) * self.per_minute / 60)

    def _forget(self, now: float) -> None:
        kept = {c: b for c, b in self._buckets.items() if self._left(c, now) < self.per_minute}
        # Beyond so many at once, the first ones to come are let off.
        self._buckets = dict(list(kept.items())[-CLIENTS // 2 :])
