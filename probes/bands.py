"""The layers whose scores are combined, fixed before any test prompt is read."""

from __future__ import annotations

from fractions import Fraction

BAND_START = Fraction(14, 30)
BAND_END = Fraction(22, 30)
"""First and last layer of the default band as shares of the depth; see `experiments/README.md` for how they were chosen."""


def default_band(n_layers: int) -> tuple[int, ...]:
    """The band of layers that the default probe averages over: chosen on development organisms, the same for all."""
    first = int(BAND_START * n_layers)
    last = max(first, int(BAND_END * n_layers))
    return tuple(range(first, min(last, n_layers - 1) + 1))
