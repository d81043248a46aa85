"""What a choice is made among: a question set, an estimator, a rule for its layers and one for its alarm.

Both rules follow from depth and clean prompts alone, so that one choice serves every base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...probes.estimators.guard import Evidence, league
from ...probes.estimators.registry import estimators
from ...probes.evidence.layer_choice import middle_layers, stretch_of_layers
from ...probes.questions.formats import split_format
from ...probes.statistics.calibration import ALARMS, least_clean_prompts

QUANTILE, NORMAL = "quantile", "normal"
PAPERS, CANDIDATE, CONTROL = "paper", "candidate", "control"


@dataclass(frozen=True)
class Candidate:
    """A question set, an estimator and a layer rule: what a choice is made among."""

    estimator: str
    contrast: str
    layers: str
    """`middle`, `middle-WIDTH`, or a share of the depth such as `0.45-0.6`; see `layers_by_rule`."""
    clean: bool = True
    """Whether the fit sees clean prompts, if only to scale its scores; without them it is in the league of questions
    only."""
    alarm: str = "quantile"
    """How high above clean prompts the alarm is set, one of `probes.statistics.calibration.ALARMS`; see
    `alarm_threshold`."""

    @property
    def name(self) -> str:
        """What tables call it."""
        also = ("" if self.clean else ", no clean prompts") + ("" if self.alarm == "quantile" else f", {self.alarm}")
        return f"{self.estimator}, {self.contrast}, {self.layers}{also}"

    @property
    def league(self) -> str:
        """What its fit is allowed to see (`probes.guard.league`): probes are chosen, and compared, within one."""
        kind = estimators()[self.estimator]
        seen = {Evidence.CLEAN} if self.clean else set()
        return league(seen | ({Evidence.CONTRAST, Evidence.TRAFFIC} & kind.sees))

    @property
    def sees_traffic(self) -> bool:
        """Whether its fit is given unlabelled traffic."""
        return Evidence.TRAFFIC in estimators()[self.estimator].needs


PAPER = Candidate("mean-difference", "six", "middle", clean=False)
"""MacDiarmid et al. 2024: six questions, the difference of means, the middle layer."""


@dataclass(frozen=True)
class Line:
    """A line of the tables: one probe, and why it is there."""

    candidate: Candidate
    part: str
    """`paper`: MacDiarmid et al. 2024; `candidate`; `control`: the same recipe with another question set."""
    is_choice: bool = False


def lines_of(candidates: Sequence[Candidate], chosen: Sequence[Candidate], controls: Sequence[str]) -> list[Line]:
    """The paper's recipe, every candidate, and the controls (sets of questions) of the paper's and of the chosen ones.

    Without a choice, as on development organisms, there are no controls: nothing is to be judged yet.
    """
    found = [Line(PAPER, PAPERS, PAPER in chosen)]
    found += [Line(each, CANDIDATE, each in chosen) for each in candidates if each != PAPER]
    asking = [main for main in (PAPER, *chosen) if not main.sees_traffic]  # traffic is what counts there, not questions
    if chosen:
        found += [Line(each, CONTROL) for main in asking for each in controls_of(main, controls)]
    first: dict[Candidate, Line] = {}
    for line in found:
        first.setdefault(line.candidate, line)
    return list(first.values())


def controls_of(main: Candidate, names: Sequence[str]) -> list[Candidate]:
    """The main probe with other question sets, put in the same format and read at the same layers."""
    return [replace(main, contrast=f"{name}{split_format(main.contrast)[1]}") for name in names]


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


def alarm_threshold(calibration: Iterable[Tensor], rate: float, rule: str) -> float:
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
