"""Layer rules that follow from the depth alone, so that one choice serves bases of different depth."""

from __future__ import annotations

import re

from ...activations.basics.errors import DefectionError
from ...probes.evidence.layer_choice import middle_layers, stretch_of_layers


def layers_by_rule(rule: str, n_layers: int) -> tuple[int, ...]:
    """The layers that a rule names in a model of `n_layers`.

    `middle`: n_layers // 2 (MacDiarmid et al. 2024); `middle-4`: so many around it; `0.5-1.0`: that stretch of the
    depth, its end excluded, one layer at least. Raises DefectionError for another rule, or one that does not fit.
    """
    if rule == "middle":
        return (n_layers // 2,)
    if match := re.fullmatch(r"middle-([1-9]\d*)", rule):
        return middle_layers(n_layers, int(match[1])).layers
    if found := stretch(rule):
        return stretch_of_layers(n_layers, *found).layers
    raise DefectionError(
        f"unknown layer rule {rule!r}: middle, middle-WIDTH, or a stretch such as 0.45-0.6 of the depth"
    )


def stretch(rule: str) -> tuple[float, float] | None:
    """Where a rule such as `0.5-1.0` begins and ends, as shares of the depth; None for another rule."""
    match = re.fullmatch(r"(\d\.\d+)-(\d\.\d+)", rule)
    if match is None:
        return None
    start, end = (float(part) for part in match.groups())
    return (start, end) if 0 <= start < end <= 1 else None
