"""Logistic regression: at one strength of the L2 penalty, or at the strength that predicts unseen topics best."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from ...activations.basics.errors import DefectionError
from .linear import Hyperplane, SupervisedProbe
from .sample import Labelled, centred, span

STRENGTHS = tuple(10.0**power for power in range(-6, 3))
TOLERANCE = 1e-7
"""Of the mean gradient's largest entry, which leaves the weights within some 1e-6 of the optimum's."""
PATH_TOLERANCE = 1e-6
"""Enough to tell strengths by their held-out losses."""
ROUNDING = 1e-12
MAX_STEPS = 1000

Rows = Float[NDArray[np.floating], "n k"]
Marks = Bool[NDArray[np.bool_], "n"]


class LogisticProbe(SupervisedProbe):
    """Minimises C Σ log(1 + exp(−yᵢ(w·xᵢ + b))) + ½‖w‖²: `sklearn.linear_model.LogisticRegression`, converged.

    Examples:
        >>> LogisticProbe(C=0.1).fit(X, y).decision_function(X).shape
        (40, 3)
    """

    name = "logistic"

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def _solve(self, sample: Labelled) -> Hyperplane:
        marks = sample.marks.cpu().numpy()
        spanned = Spanned(sample)
        return spanned.plane([_regression(self.C).fit(rows, marks) for rows in spanned.rows])


class LogisticProbeCV(SupervisedProbe):
    """Logistic regression along a path of penalties, each layer at the C whose held-out log loss is least.

    Rows of one topic (`groups`; every row is its own without) never stand on both sides of a split.
    Folds are scikit-learn's `GroupKFold`: deterministic, the largest topics dealt first. Leaves `C_` and `losses_`
    [layer, C]: mean log loss over folds.

    Examples:
        >>> LogisticProbeCV(Cs=(0.01, 1.0)).fit(X, y, groups=groups).C_.shape
        (3,)
    """

    name = "logistic-cv"

    def __init__(self, Cs: tuple[float, ...] = STRENGTHS, folds: int = 5) -> None:
        self.Cs = Cs
        self.folds = folds

    def _solve(self, sample: Labelled) -> Hyperplane:
        marks, strengths = sample.marks.cpu().numpy(), sorted(self.Cs)
        groups = np.arange(len(marks)) if sample.groups is None else sample.groups.cpu().numpy()
        folds = topic_folds(groups, marks, self.folds)
        spanned, losses, chosen = Spanned(sample), [], []
        # Every row was checked before; checking them again is a third of the time of fits this small.
        with config_context(assume_finite=True, skip_parameter_validation=True):
            for rows in spanned.rows:
                losses.append(np.mean([_path_losses(rows, marks, train, test, strengths) for train, test in folds], 0))
                best = strengths[losses[-1].argmin()]
                chosen.append(_regression(best).fit(rows, marks))
        plane = spanned.plane(chosen)
        told = {
            "C": torch.tensor([fit.C for fit in chosen], dtype=torch.float64),
            "losses": torch.from_numpy(np.stack(losses)),
        }
        return Hyperplane(plane.coef, plane.intercept, told)


class Spanned:
    """Centred rows in a basis of their span, in which the penalty and the scores are what they were."""

    def __init__(self, sample: Labelled) -> None:
        rows, self.mean = centred(sample.rows)
        self.basis = span(rows) if rows.shape[1] < rows.shape[2] else None
        self.rows = (rows if self.basis is None else rows @ self.basis.mT).cpu().numpy()

    def plane(self, fits: list[LogisticRegression]) -> Hyperplane:
        """The hyperplanes of each layer's fit, in all dimensions."""
        short = torch.from_numpy(np.stack([fit.coef_ for fit in fits])).to(self.mean)
        coef = (short if self.basis is None else short @ self.basis)[:, 0]
        intercept = torch.from_numpy(np.concatenate([fit.intercept_ for fit in fits])).to(coef)
        return Hyperplane(coef, intercept - torch.linalg.vecdot(coef, self.mean))


def topic_folds(
    groups: Int[NDArray[np.integer], "n"], marks: Marks, folds: int
) -> list[tuple[Int[NDArray[np.integer], "train"], Int[NDArray[np.integer], "test"]]]:
    """Row numbers of `GroupKFold`'s folds; DefectionError where a single topic or class is left to fit on."""
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise DefectionError("cross-validation by topic needs rows of at least two topics")
    found = list(GroupKFold(min(folds, n_groups)).split(groups, groups=groups))
    if any(len(np.unique(marks[train])) < 2 for train, _ in found):
        raise DefectionError("a fold without one topic's rows holds a single class; use fewer folds")
    return found


def _regression(C: float, tolerance: float = TOLERANCE, *, warm_start: bool = False) -> LogisticRegression:
    tol = _reached(tolerance, C)
    return LogisticRegression(C=C, solver="newton-cg", tol=tol, max_iter=MAX_STEPS, warm_start=warm_start)


def _reached(tolerance: float, C: float) -> float:
    """A tolerance of the mean loss's gradient, in which the penalty that holds the weights has a share of 1 / C."""
    return max(tolerance / max(1.0, C), ROUNDING)


def _path_losses(
    rows: Rows, marks: Marks, train: NDArray[np.integer], test: NDArray[np.integer], strengths: list[float]
) -> Float[NDArray[np.float64], "strength"]:
    """Mean log loss on `test` of fits on `train`, each from where the weaker fit ended."""
    fit, losses = _regression(strengths[0], PATH_TOLERANCE, warm_start=True), []
    for strength in strengths:
        fit.set_params(C=strength, tol=_reached(PATH_TOLERANCE, strength))
        scores = fit.fit(rows[train], marks[train]).decision_function(rows[test])
        losses.append(np.logaddexp(0, np.where(marks[test], -scores, scores)).mean())
    return np.array(losses)
