"""Logistic regression: at one strength of the L2 penalty, or at the strength that predicts unseen topics best."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from ...activations.basics.errors import DefectionError
from .estimator import Hyperplane, LinearProbe
from .sample import Sample, centred
from .solving.newton import Optimum, System, minimise, system_of

STRENGTHS = tuple(10.0**power for power in range(-6, 3))


class LogisticProbe(LinearProbe):
    """Minimises C Σ log(1 + exp(−yᵢ(w·xᵢ + b))) + ½‖w‖²: `sklearn.linear_model.LogisticRegression`, converged."""

    name = "logistic"

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        rows, mean = centred(sample.rows)
        system = system_of(rows, coarse=sample.coarse)
        return _plane(system, minimise(system, sample.marks, self.C), mean)


class LogisticProbeCV(LinearProbe):
    """Logistic regression along a path of penalties, each layer at the C whose held-out log loss is least.

    Rows of one topic (`groups`; every row is its own without) never stand on both sides of a split (PITFALLS 23).
    Folds are made like scikit-learn's `GroupKFold`: deterministic, the largest topics dealt first. Leaves `C_` and
    `losses_` [layer, C]: mean log loss over folds.
    """

    name = "logistic-cv"

    def __init__(self, Cs: tuple[float, ...] = STRENGTHS, folds: int = 5) -> None:
        self.Cs = Cs
        self.folds = folds

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        marks, strengths = sample.marks, sorted(self.Cs)
        groups = sample.groups if sample.groups is not None else torch.arange(len(marks))
        rows, mean = centred(sample.rows)
        losses = []
        for fold in held_out(groups, self.folds):
            test = fold.to(marks.device)
            if marks[~test].all() or not marks[~test].any():
                raise DefectionError("a fold without one topic's rows holds a single class; use fewer folds")
            losses.append(_path_losses(rows, marks, test, strengths, coarse=sample.coarse))
        mean_losses = torch.stack(losses).mean(dim=0)
        best = mean_losses.argmin(dim=1)
        system, plane, optimum = system_of(rows, coarse=sample.coarse), None, None
        for number, strength in enumerate(strengths):
            optimum = minimise(system, marks, strength, optimum)
            here = _plane(system, optimum, mean)
            chosen = best == number
            plane = (
                here
                if plane is None
                else Hyperplane(
                    torch.where(chosen[:, None], here.coef, plane.coef),
                    torch.where(chosen, here.intercept, plane.intercept),
                )
            )
        assert plane is not None
        found = {"C": torch.tensor(strengths, dtype=torch.float64)[best.cpu()], "losses": mean_losses}
        return Hyperplane(plane.coef, plane.intercept, found)


def held_out(groups: Int[Tensor, "n"], folds: int) -> list[Bool[Tensor, "n"]]:
    """Marks of each fold's test rows; whole groups, the largest first, each to the fold that is smallest so far."""
    from sklearn.model_selection import GroupKFold

    numbers = groups.cpu().numpy()
    n_groups = len(set(numbers.tolist()))
    if n_groups < 2:
        raise DefectionError("cross-validation by topic needs rows of at least two topics")
    tests = []
    for _, chosen in GroupKFold(min(folds, n_groups)).split(numbers, groups=numbers):
        test = torch.zeros(len(numbers), dtype=torch.bool)
        test[torch.as_tensor(chosen)] = True
        tests.append(test)
    return tests


def _path_losses(
    rows: Float[Tensor, "layer n d"], marks: Tensor, test: Tensor, strengths: list[float], *, coarse: bool
) -> Float[Tensor, "layer strength"]:
    """Mean log loss on the rows of `test` of fits on the others, each from where the weaker fit ended."""
    inside = rows[:, ~test]
    mean = inside.mean(dim=1)
    system, optimum, losses = system_of(inside - mean[:, None], coarse=coarse), None, []
    signs = 2 * marks[test].double() - 1
    for strength in strengths:
        optimum = minimise(system, marks[~test], strength, optimum)
        plane = _plane(system, optimum, mean)
        scores = torch.einsum("lnd,ld->ln", rows[:, test], plane.coef) + plane.intercept[:, None]
        losses.append(softplus(-signs * scores).mean(dim=1))
    return torch.stack(losses, dim=1)


def _plane(system: System, optimum: Optimum, mean: Float[Tensor, "layer d"]) -> Hyperplane:
    coef = system.coef(optimum.theta)
    return Hyperplane(coef, optimum.intercept - torch.einsum("ld,ld->l", coef, mean))
