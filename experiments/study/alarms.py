"""How high above clean prompts' scores a study sets its alarm, where they come of several sets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...probes.statistics.calibration import ALARMS, least_clean_prompts

QUANTILE, NORMAL = "quantile", "normal"


def alarm(calibration: Iterable[Tensor], rate: float, rule: str) -> float:
    """The threshold that one of `probes.calibration.ALARMS` sets on the scores of several sets of clean prompts.

    The highest that any of them asks for; with `normal` that of all together, so that what sets them apart counts as
    spread. A `quantile` is promised by sets large enough for the rate, and by all together: infinite where even those
    are too few.
    """
    sets = list(calibration)
    together, parts = [torch.cat(sets)], sets
    if rule == NORMAL:
        parts = together
    elif rule == QUANTILE:
        parts = together + [scores for scores in sets if len(scores) >= least_clean_prompts(rate)]
    return max(float(ALARMS[rule](scores, rate)) for scores in parts)
