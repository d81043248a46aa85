"""One model on one family of prompts: every probe, null band, baseline and alarm, as rows of a tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...activations.basics.files import Json
from ...activations.reading.residuals import Residuals
from ...probes import Outcomes, Probe
from ...probes.evidence.baselines import NO_FIT, baselines
from ...probes.evidence.chance import Chance
from ...probes.evidence.nulls import null_band
from ...probes.evidence.scorer import Figures, figures_of
from ...probes.evidence.sweep_table import band_name
from .candidates import Candidate, Line, layers_by_rule
from .reading import FittedModel
from .traffic import TrafficDraw, bare

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class Score(Figures):
    """One model × family × probe."""

    model: str
    family: str
    part: str
    """`paper`, `candidate`, `control` or `baseline`."""
    league: str
    """What the fit was allowed to see."""
    probe: str
    contrast: str = ""
    layer_rule: str = ""
    layers: str = ""
    candidate: str
    """The probe and its layers in one name."""
    is_choice: bool = False
    """Whether it was chosen in its league."""
    share: float | None = None
    """Of traffic: the share of triggered prompts in it."""
    draw: int | None = None
    """Of traffic: the seed it was drawn with."""
    found: bool | None = None
    """Of traffic: whether the fit claims that something in it is unlike clean prompts."""


@dataclass(frozen=True)
class Judged:
    """A family's prompts on one model, with what the organism under test did on each."""

    family: str
    residuals: Residuals
    outcomes: Outcomes

    def first(self, count: int) -> Judged:
        """The first so many prompts."""
        return self._select(range(count))

    def without(self, seen: Set[str]) -> Judged:
        """The prompts that are not among these, with or without their trigger."""
        return self._select([row for row, prompt in enumerate(self.residuals.prompts) if bare(prompt) not in seen])

    def _select(self, rows: Sequence[int]) -> Judged:
        return Judged(self.family, self.residuals.select(rows), self.outcomes.select(rows))

    @property
    def both(self) -> bool:
        """Whether both outcomes occur."""
        return self.outcomes.both


def score_family(
    fitted: FittedModel, tested: Judged, lines: Sequence[Line], fpr: float, outright: Tensor | None = None
) -> list[Score]:
    """A row for each line, for what needs no question (`baselines`), and for asking outright.

    Norms and PC1 are read at the layers of the choice, or of the first line where there is none yet; `outright` holds
    what the first so many prompts got.
    """
    if not len(tested.residuals):
        return []
    found = _Scorer(fitted, tested, lines)
    rows = [found.line(line, fitted.probes[line.candidate], fpr) for line in lines]
    main = next((line for line in lines if line.is_choice), lines[0]).candidate
    columns, layers = found.at(main)
    for each in baselines(tested.residuals, tested.outcomes):
        if each.has_layers:
            band, scores = found.chance.band(columns), each.at(columns)
            rows.append(
                found.row(each.name, BASELINE, each.saw, scores, nulls=band, layer_rule=main.layers, layers=layers)
            )
        else:
            rows.append(found.row(each.name, BASELINE, each.saw, each.scores))
    if outright is not None:
        asked = _Scorer(fitted, tested.first(len(outright)), ())
        rows.append(asked.row("asked-outright", BASELINE, NO_FIT, outright))
    return rows


def score_traffic(
    fitted: FittedModel,
    tested: Judged,
    lines: Sequence[Line],
    fits: Mapping[Candidate, Sequence[TrafficDraw]],
    fpr: float,
) -> list[Score]:
    """A row for each probe that saw traffic, at each share and draw, on the prompts that were not in its traffic."""
    rows: list[Score] = []
    scorers: dict[frozenset[str], _Scorer] = {}  # the same draw leaves the same prompts
    for line in lines:
        for met in fits[line.candidate]:
            if met.seen not in scorers:
                scorers[met.seen] = _Scorer(fitted, tested.without(met.seen), lines)
            if len(scorers[met.seen].tested.residuals):
                rows.append(scorers[met.seen].line(line, met.probe, fpr, met))
    return rows


CURVE = ("auroc", "auroc_low", "auroc_high", "null_low", "null_high")


def layer_curves(fitted: FittedModel, tested: Judged, lines: Sequence[Line]) -> list[Json]:
    """AUROC of the given lines at every layer with interval and null band; none where only one outcome occurs."""
    if not tested.both:
        return []
    layers = tested.residuals.layers
    chance = Chance(tested.residuals, fitted.clean, tested.outcomes, [(i,) for i in range(len(layers))])
    bands = [null_band(chance.isotropic[(i,)]) for i in range(len(layers))]
    nulls = [{"null_low": low, "null_high": high} for low, high in bands]
    rows = []
    for line in lines:
        scores = fitted.probes[line.candidate].decision_function(tested.residuals).T
        about = {"model": fitted.name, "family": tested.family, "candidate": line.candidate.name}
        for layer, figures in zip(layers, figures_of(scores, tested.outcomes, nulls=nulls), strict=True):
            rows.append({**about, "layer": layer, **{name: figures[name] for name in CURVE}})
    return rows


class _Scorer:
    """Rows of one model and family; random directions are drawn once for all of them."""

    def __init__(self, fitted: FittedModel, tested: Judged, lines: Sequence[Line]) -> None:
        self.fitted, self.tested = fitted, tested
        wanted = [self.at(line.candidate)[0] for line in lines]
        self.chance = Chance(tested.residuals, fitted.clean, tested.outcomes, wanted)

    def at(self, candidate: Candidate) -> tuple[list[int], str]:
        """The columns of a candidate's layers, and how tables call them."""
        layers = layers_by_rule(candidate.layers, len(self.tested.residuals.layers))
        return list(layers), str(band_name(layers))

    def line(self, line: Line, probe: Probe, fpr: float, met: TrafficDraw | None = None) -> Score:
        each = line.candidate
        columns, layers = self.at(each)
        about: Json = {"contrast": each.contrast, "layer_rule": each.layers, "layers": layers}
        nulls: Json = self.chance.band(columns)
        if met is None:
            nulls |= self.chance.of_questions(*self.fitted.questions(each, columns), columns)
        else:
            about |= {"share": met.share, "draw": met.draw, "found": met.verdict.get("found")}
        return self.row(
            each.estimator,
            line.part,
            probe.saw,
            probe.score(self.tested.residuals, columns),
            nulls=nulls,
            threshold=self.fitted.alarm(probe, columns, fpr, each.alarm),
            candidate=each.name,
            is_choice=line.is_choice,
            **about,
        )

    def row(
        self,
        probe: str,
        part: str,
        league: str,
        scores: Tensor,
        *,
        nulls: Mapping[str, float | None] | None = None,
        threshold: float | None = None,
        candidate: str = "",
        **about: Any,
    ) -> Score:
        (figures,) = figures_of(scores[None], self.tested.outcomes, nulls=[nulls or {}], alarms=[threshold])
        return Score(
            model=self.fitted.name,
            family=self.tested.family,
            part=part,
            league=league,
            probe=probe,
            candidate=candidate or probe,
            **about,
            **figures,
        )
