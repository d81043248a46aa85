"""Monitors that know no question: how far a prompt lies from the clean ones, and along which axis they vary most."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.reading.residuals import Residuals
from ..statistics.calibration import conformal_threshold
from .arrays import Array
from .components import leading_components
from .estimator import ProbeEstimator
from .guard import Evidence
from .linear import Hyperplane, LinearProbe
from .mean_difference import plane_through
from .probe import ALARM_RATE
from .sample import Sample, centred, mean_of, stacked
from .solving.covariance import divide_by_covariance
from .whitened import shrunk


class Mahalanobis(ProbeEstimator):
    """Distance to the mean of clean prompts in their own covariance, shrunk: √((x − μ)ᵀ Σ⁻¹ (x − μ)).

    `fit(X)` takes clean rows alone. `predict` marks rows farther away than 99% of new clean ones are: `threshold_`
    comes of distances to fits on other rows, whole topics apart where `groups` tell them (a row is always close to a
    covariance that it helped to make). Of fewer than 99 clean rows it is infinite, and nothing is marked.

    Examples:
        >>> Mahalanobis().fit(clean).predict(clean).shape
        (40, 3)
    """

    name = "mahalanobis"
    sees = needs = frozenset({Evidence.CLEAN})
    own_alarm = True

    def __init__(self, shrinkage: float | str = "ledoit-wolf") -> None:
        self.shrinkage = shrinkage

    def _fit(self, sample: Sample) -> None:
        clean = sample.clean_for(self.name)
        self.location_ = mean_of(clean)
        parts = [shrunk([(chunk.clean_for(self.name), 1.0)], self.shrinkage) for chunk in sample.chunks()]
        self.rows_ = torch.cat([rows for rows, _, _ in parts])
        self.ridge_ = torch.cat([ridge for _, ridge, _ in parts])

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        location, known, ridge = (
            torch.as_tensor(x, device=rows.device) for x in (self.location_, self.rows_, self.ridge_)
        )
        away = stacked(rows) - location[:, None]
        divided = divide_by_covariance(known, ridge, away.mT).mT
        return (away * divided).sum(dim=2).clamp_min(0).sqrt().T

    def _set_alarm(self, clean: Float[Tensor, "clean layer"]) -> None:
        self.threshold_ = conformal_threshold(clean.T, ALARM_RATE)

    def predict(self, X: Residuals | Array) -> Any:
        """Whether each row lies farther away than 99% of new clean ones would."""
        scores = self.decision_function(X)
        threshold = torch.as_tensor(self.threshold_)
        if isinstance(X, Residuals):  # whose scores are in standard deviations
            threshold = self.reference_.in_deviations(threshold)
        threshold = threshold if scores.ndim == 2 else threshold[0]
        return scores > (threshold.to(scores.device) if isinstance(scores, Tensor) else threshold.numpy())


class FirstComponent(LinearProbe):
    """The first principal component of clean prompts, and of unlabelled traffic when there is some ("PC1").

    Without labels its sign is settled by rarity: the long tail of the projections is up, since in traffic the
    triggered prompts are the few. `fit(X)` takes clean rows; `traffic` more rows of which nothing is known.

    Examples:
        >>> FirstComponent().fit(clean).decision_function(X).shape
        (40, 3)
    """

    name = "pc1"
    sees = frozenset({Evidence.CLEAN, Evidence.TRAFFIC})
    needs = frozenset({Evidence.CLEAN})

    def _fit(self, sample: Sample) -> None:
        self._keep([self._solve(chunk) for chunk in sample.chunks()])

    def _solve(self, sample: Sample) -> Hyperplane:
        rows = [rows for rows in (sample.clean_for(self.name), sample.traffic) if rows is not None]
        stack, mean = centred(torch.cat([r.to(torch.promote_types(r.dtype, torch.float32)) for r in rows]))
        component = leading_components(stack, 1)[:, 0]
        tail = torch.einsum("lnd,ld->ln", stack, component).pow(3).sum(dim=1)
        return plane_through(torch.where(tail[:, None] < 0, -component, component), mean)
