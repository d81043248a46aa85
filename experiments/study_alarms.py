"""How high above clean prompts' scores an alarm is set: by what they reach, or by what no such distribution reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..probes.calibration import unimodal_threshold


def _quantile(scores: Tensor, rate: float) -> Tensor:
    return torch.quantile(scores.double(), 1 - rate)


ALARMS: dict[str, Callable[[Tensor, float], Tensor]] = {"quantile": _quantile, "unimodal": unimodal_threshold}
"""`quantile`: a share of the clean prompts themselves lies above; `unimodal`: of any unimodal distribution with their
mean and spread at most that share does, which leaves room for prompts of another kind."""


def alarm(calibration: Iterable[Tensor], rate: float, rule: str) -> float:
    """The threshold for scores [prompt] of several sets of clean prompts: the set that needs the highest decides."""
    return max(float(ALARMS[rule](scores, rate)) for scores in calibration)
