"""Logistic regression by damped Newton steps, all layers in one batch.

Minimises C Σ log(1 + exp(−yᵢ(w·xᵢ + b))) + ½‖w‖², scikit-learn's objective; b is free. A full Newton step on separable
data overshoots into NaN (PITFALLS 17), so each layer halves its step until the objective falls enough.

With fewer rows than dimensions w = Xᵀa, and everything happens in the n × n matrix of inner products K = XXᵀ; each
step factorises I + C W^½ K W^½, whose eigenvalues are at least 1 whatever the weights W = p(1 − p) do (Rasmussen and
Williams 2006, algorithm 3.1). Otherwise it factorises the d × d Hessian I + C XᵀWX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

TOLERANCE = 1e-14
"""A layer is done when its squared Newton decrement falls below this share of its objective."""
MAX_STEPS = 200
SMALLEST_WEIGHT = 1e-12


class System(Protocol):
    """One way to write the weights of a linear model, and to solve for a Newton step in it."""

    def scores(self, theta: Float[Tensor, "layer m"]) -> Float[Tensor, "layer n"]:
        """X w."""

    def inner(self, a: Float[Tensor, "layer m"], b: Float[Tensor, "layer m"]) -> Float[Tensor, "layer"]:
        """w(a) · w(b)."""

    def solve(
        self, weights: Float[Tensor, "layer n"], right: Float[Tensor, "layer n"]
    ) -> tuple[Float[Tensor, "layer m"], Float[Tensor, "layer"]]:
        """The w and b that minimise ½‖w‖² + ½ Σ Wᵢ (fᵢ − rᵢ/Wᵢ)²: weighted least squares."""

    def coef(self, theta: Float[Tensor, "layer m"]) -> Float[Tensor, "layer d"]:
        """W itself."""

    def zero(self) -> Float[Tensor, "layer m"]:
        """The theta of w = 0."""


class Dual:
    """w = Xᵀ theta; for n ≤ d."""

    def __init__(self, rows: Float[Tensor, "layer n d"]) -> None:
        self.rows, self.gram = rows, rows @ rows.mT

    def zero(self) -> Tensor:
        """A number a row."""
        return self.rows.new_zeros(self.rows.shape[:2])

    def scores(self, theta: Tensor) -> Tensor:
        """K theta."""
        return _times(self.gram, theta)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """A K b."""
        return (a * self.scores(b)).sum(dim=1)

    def solve(self, weights: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Theta = M(r − bW) with M = (I + WK)⁻¹, and b such that theta sums to 0, which the free intercept asks for."""
        root = weights.sqrt()
        system = root[:, :, None] * self.gram * root[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1)
        factor = torch.linalg.cholesky(system)
        both = torch.stack([root * self.scores(right), root], dim=2)
        solved = root[:, :, None] * torch.cholesky_solve(both, factor)
        free, level = right - solved[..., 0], solved[..., 1]  # M r and M W 1
        intercept = free.sum(dim=1) / level.sum(dim=1)
        return free - intercept[:, None] * level, intercept

    def coef(self, theta: Tensor) -> Tensor:
        """Xᵀ theta."""
        return _times(self.rows.mT, theta)


class Primal:
    """theta = w; for n > d."""

    def __init__(self, rows: Float[Tensor, "layer n d"]) -> None:
        self.rows = rows

    def zero(self) -> Tensor:
        """A number a dimension."""
        return self.rows.new_zeros(self.rows.shape[0], self.rows.shape[2])

    def scores(self, theta: Tensor) -> Tensor:
        """X w."""
        return _times(self.rows, theta)

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        """A · b."""
        return (a * b).sum(dim=1)

    def solve(self, weights: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """(I + XᵀWX) w = Xᵀ(r − bW), and b from the sum over rows."""
        weighted = self.rows * weights.sqrt()[:, :, None]
        system = weighted.mT @ weighted
        system.diagonal(dim1=1, dim2=2).add_(1)
        both = self.rows.mT @ torch.stack([right, weights], dim=2)
        solved = torch.cholesky_solve(both, torch.linalg.cholesky(system))
        above = right.sum(dim=1) - (both[..., 1] * solved[..., 0]).sum(dim=1)
        below = weights.sum(dim=1) - (both[..., 1] * solved[..., 1]).sum(dim=1)
        intercept = above / below
        return solved[..., 0] - intercept[:, None] * solved[..., 1], intercept

    def coef(self, theta: Tensor) -> Tensor:
        """Theta itself."""
        return theta


@dataclass(frozen=True)
class Optimum:
    """Where the objective is least."""

    theta: Float[Tensor, "layer m"]
    intercept: Float[Tensor, "layer"]
    steps: int


def system_of(rows: Float[Tensor, "layer n d"]) -> System:
    """The smaller of the two systems for centred rows."""
    return Dual(rows) if rows.shape[1] <= rows.shape[2] else Primal(rows)


def minimise(system: System, marks: Bool[Tensor, "n"], strength: float, start: Optimum | None = None) -> Optimum:
    """The one minimum for C = `strength`, to rounding; `start` from that of a neighbouring C for a path."""
    signs = 2 * marks.double() - 1
    if start is None:
        theta = system.zero()
        intercept = torch.logit(marks.double().mean()).repeat(len(theta))
    else:
        theta, intercept = start.theta, start.intercept
    scores = system.scores(theta) + intercept[:, None]
    for step in range(MAX_STEPS):
        chances = torch.sigmoid(signs * scores)  # of the label that is there
        pull = strength * signs * (1 - chances)
        weights = (strength * chances * (1 - chances)).clamp_min(SMALLEST_WEIGHT * strength)
        wanted, level = system.solve(weights, pull + weights * scores)
        move, shift = wanted - theta, level - intercept
        change = system.scores(move) + shift[:, None]
        descent = system.inner(theta, move) - (pull * change).sum(dim=1)
        now = _objective(scores, signs, strength, system.inner(theta, theta))
        length = _length(system, theta, move, scores, change, signs, strength, now, descent)
        theta = theta + length[:, None] * move
        intercept = intercept + length * shift
        scores = scores + length[:, None] * change
        if bool((-descent <= TOLERANCE * (now + 1e-300)).all()):
            break
    return Optimum(theta, intercept, step + 1)


def _length(
    system: System,
    theta: Tensor,
    move: Tensor,
    scores: Tensor,
    change: Tensor,
    signs: Tensor,
    strength: float,
    now: Tensor,
    descent: Tensor,
) -> Float[Tensor, "layer"]:
    """The largest of 1, ½, ¼, … at which each layer's objective falls by enough (Armijo's rule)."""
    straight, crossed, squared = system.inner(theta, theta), system.inner(theta, move), system.inner(move, move)
    length = torch.ones_like(now)
    slack = 1e-12 * now.abs()  # near the minimum the fall drowns in rounding, and the full step is right
    for _ in range(60):
        norm = straight + 2 * length * crossed + length**2 * squared
        there = _objective(scores + length[:, None] * change, signs, strength, norm)
        falls = there <= now + 1e-4 * length * descent + slack
        if bool(falls.all()):
            break
        length = torch.where(falls, length, length / 2)
    return length


def _objective(scores: Tensor, signs: Tensor, strength: float, norm: Tensor) -> Float[Tensor, "layer"]:
    return strength * softplus(-signs * scores).sum(dim=1) + norm / 2


def _times(matrix: Float[Tensor, "layer a b"], vector: Float[Tensor, "layer b"]) -> Float[Tensor, "layer a"]:
    return torch.bmm(matrix, vector[..., None])[..., 0]
