"""Many organisms, one claim: seeds that share base, trigger and recipe are not independent, so they count as one unit.

The generic direction and the shift of the residual are nearly the same draw for all seeds of a unit. So p-values are
averaged within a unit, which any dependence allows at the price of a factor of two (Vovk and Wang 2020), and only the
units' are multiplied (Fisher 1932). A sign test over units needs no p-value at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ...activations.basics.errors import DefectionError


@dataclass(frozen=True)
class Combined:
    """What several organisms say together."""

    units: Mapping[str, float]
    """Unit (base × trigger × recipe) → its p-value: twice the mean over its organisms, 1 at most."""
    p: float
    """Of all units: Fisher's combination."""
    above: int
    """Units whose mean AUROC lies above ½."""
    sign_p: float
    """One-sided sign test: as many units above ½ by tosses of a coin."""


def combined(p_values: Mapping[str, Sequence[float]], aurocs: Mapping[str, Sequence[float]]) -> Combined:
    """Combine the organisms of each unit, and then the units.

    `p_values` and `aurocs` map a unit to its organisms' figures. Raises DefectionError for no unit, a unit without an
    organism, units that differ between the two, and a p-value outside of 0 … 1.
    """
    if not p_values or p_values.keys() != aurocs.keys():
        raise DefectionError("combining organisms needs p-values and AUROCs of the same units, one at least")
    for unit, values in p_values.items():
        if not values or not aurocs[unit] or not all(0 < p <= 1 for p in values):
            raise DefectionError(f"unit {unit!r} needs p-values between 0 and 1 and AUROCs, one an organism")
    from scipy.stats import binom, chi2

    units = {unit: min(1.0, 2 * fmean(values)) if len(values) > 1 else values[0] for unit, values in p_values.items()}
    statistic = -2 * sum(math.log(p) for p in units.values())
    above = sum(fmean(values) > 0.5 for values in aurocs.values())
    return Combined(
        units,
        float(chi2.sf(statistic, 2 * len(units))),
        above,
        float(binom.sf(above - 1, len(units), 0.5)),
    )
