"""How high above clean prompts' scores an alarm is set: by what they reach, by their spread, or by a bound on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..probes.calibration import normal_threshold, unimodal_threshold


def _of_the_worst(rule: Callable[[Tensor, float], Tensor]) -> Callable[[list[Tensor], float], float]:
    """Of the rule's thresholds for each set the highest."""
    return lambda sets, rate: max(float(rule(scores, rate)) for scores in sets)


def _of_all(rule: Callable[[Tensor, float], Tensor]) -> Callable[[list[Tensor], float], float]:
    """The rule's threshold for all sets together, so that what sets them apart counts as spread."""
    return lambda sets, rate: float(rule(torch.cat(sets), rate))


def _quantile(scores: Tensor, rate: float) -> Tensor:
    return torch.quantile(scores.double(), 1 - rate)


ALARMS: dict[str, Callable[[list[Tensor], float], float]] = {
    "quantile": _of_the_worst(_quantile),
    "normal": _of_all(normal_threshold),
    "unimodal": _of_the_worst(unimodal_threshold),
}
"""`quantile`: that share of the clean prompts themselves lies above, of the set that needs the highest; `normal`: a
tenth of it would, of a normal distribution with the mean and spread of all sets together; `unimodal`: at most that
share would, of any unimodal distribution with a set's mean and spread: most room for prompts of other kinds."""


def alarm(calibration: Iterable[Tensor], rate: float, rule: str) -> float:
    """The threshold that one of `ALARMS` sets on the scores of several sets of clean prompts."""
    return ALARMS[rule](list(calibration), rate)
