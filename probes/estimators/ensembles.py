"""Many weak directions as one score: the questions of a set, each with a probe of its own, and a band of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, Self, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import clone
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..statistics.scale import divisor
from .arrays import Array
from .estimator import ProbeEstimator
from .guard import Evidence
from .linear import Hyperplane, SupervisedProbe
from .mean_difference import MeanDifference, plane_through
from .sample import Labelled, Sample

Single = TypeVar("Single", bound=ProbeEstimator)


class _OfProbes(Generic[Single]):
    """What an ensemble sees and needs: what a single one of its probes does, and clean prompts for the scale."""

    estimator: Single | None

    @property
    def sees(self) -> frozenset[Evidence]:
        """What a single probe sees, and clean prompts for the scale."""
        return self._single().sees | {Evidence.CLEAN}

    @property
    def needs(self) -> frozenset[Evidence]:
        """What a single probe needs."""
        return self._single().needs

    def _single(self) -> Single:
        return cast(Single, MeanDifference()) if self.estimator is None else self.estimator


class QuestionEnsemble(_OfProbes[SupervisedProbe], SupervisedProbe):
    """A probe a question (topic), its scores divided by their spread, averaged: no question is louder than another.

    An average of linear scores is linear, so the whole is one direction a layer. The spread is over clean prompts,
    or over the contrast texts where there are none. Arrays need `groups`: the question of each row.

    Examples:
        >>> QuestionEnsemble().fit(X, y, groups=groups).decision_function(X).shape
        (40, 3)
    """

    name = "question-ensemble"

    def __init__(self, estimator: SupervisedProbe | None = None) -> None:
        self.estimator = estimator

    def _solve(self, sample: Labelled) -> Hyperplane:
        if sample.groups is None:
            raise DefectionError("a question-ensemble needs groups: the question of each row")
        groups = sample.groups.to(sample.marks.device)
        reference = sample.rows if sample.clean is None else sample.clean
        total = torch.zeros(sample.n_layers, sample.rows.shape[2], dtype=torch.float64, device=sample.rows.device)
        questions = groups.unique()
        for question in questions:
            members = groups == question
            marks = sample.marks[members]
            if marks.all() or not marks.any():
                raise DefectionError(f"question {int(question)} has answers of one class only; each needs both")
            part = replace(sample, rows=sample.rows[members], marks=marks, groups=None, pairs=None, nuisance=None)
            seen = part.restricted(self._single().sees).labelled_for(self.name)
            coef = self._single()._solve(seen).coef
            spread = projections(reference, coef).std(dim=0)
            total += coef / divisor(spread)[:, None]
        middle = torch.stack([sample.rows[:, i].mean(dim=0, dtype=torch.float64) for i in range(sample.n_layers)])
        return plane_through(total / len(questions), middle)

    def question_directions(
        self, sample: Labelled, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """Each question's direction over the spread of its scores, which no sign changes."""
        single = self._single()
        found = single.question_directions(sample.restricted(single.sees).labelled_for(self.name), effects)
        if found is None:
            return None
        reference = sample.rows if sample.clean is None else sample.clean
        spread = torch.stack([projections(reference, coef).std(dim=0) for coef in found])
        return found / divisor(spread)[..., None]


class LayerEnsemble(_OfProbes[ProbeEstimator], ProbeEstimator):
    """One score over a band of layers: each layer's scores in standard deviations of reference rows, averaged.

    The band is a parameter, fixed before the fit, and never chosen by it; None takes every layer there
    is. For arrays [n, layer, d], of which `layers` are columns; the reference are clean rows, each scored by a fit
    without it, or those of the fit itself where there are none. On residuals the band of every probe, `fixed_layers`,
    does the same.

    Examples:
        >>> LayerEnsemble(layers=(1, 2)).fit(X, y).decision_function(X).shape
        (40,)
    """

    name = "layer-ensemble"

    def __init__(self, estimator: ProbeEstimator | None = None, layers: tuple[int, ...] | None = None) -> None:
        self.estimator = estimator
        self.layers = layers

    def _fit_residuals(self, contrast: Residuals, *_: object) -> Self:
        raise DefectionError("a probe on residuals has its band in fixed_layers; fit the estimator itself with it")

    def decision_function(self, X: Residuals | Array) -> Any:
        """Scores [n], whatever the number of layers."""
        scores = super().decision_function(X)
        return scores[:, 0] if scores.ndim == 2 else scores

    def _columns(self, n_layers: int) -> list[int]:
        chosen = list(range(n_layers)) if self.layers is None else list(self.layers)
        if not chosen or min(chosen) < 0 or max(chosen) >= n_layers:
            raise DefectionError(f"no band {self.layers!r} in rows of {n_layers} layers")
        return chosen

    def _fit(self, sample: Sample) -> None:
        chosen = self._columns(sample.n_layers)
        band = sample.at_layers(chosen)
        self.estimator_ = clone(self._single())
        self.estimator_.n_layers_, self.estimator_.n_features_in_ = len(chosen), self.n_features_in_
        self.estimator_.classes_ = getattr(self, "classes_", np.array([False, True]))
        self.estimator_._fit(band.restricted(self.estimator_.sees))
        if band.clean is None:
            scores = self.estimator_._scores(band.labelled_for(self.name).rows)
            middle, spread = scores.mean(dim=0), scores.std(dim=0)
        else:
            middle, spread = self.estimator_._clean_standard(band)
        self.offsets_, self.scales_ = middle, divisor(spread)

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        scores = self.estimator_._scores(rows[:, self._columns(rows.shape[1])])
        offsets, scales = (torch.as_tensor(x, device=rows.device) for x in (self.offsets_, self.scales_))
        band: Tensor = ((scores - offsets) / scales).mean(dim=1, keepdim=True)
        return band


def projections(rows: Float[Tensor, "n layer d"], coef: Float[Tensor, "layer d"]) -> Float[Tensor, "n layer"]:
    """Rows on one direction a layer, measured from the first row, so that equal rows project exactly alike."""
    return torch.stack([(rows[:, i].double() - rows[0, i].double()) @ coef[i] for i in range(len(coef))], dim=1)
