"""Logistic regression by damped Newton steps, all layers in one batch.

Minimises C Σ log(1 + exp(−yᵢ(w·xᵢ + b))) + ½‖w‖², scikit-learn's objective; b is free. A full Newton step on separable
data overshoots into NaN (PITFALLS 17), so each layer halves its step until the objective falls enough.

With fewer rows than dimensions w = Xᵀa, and everything happens in the n × n matrix of inner products K = XXᵀ; each
step factorises I + C W^½ K W^½, whose eigenvalues are at least 1 whatever the weights W = p(1 − p) do (Rasmussen and
Williams 2006, algorithm 3.1). Otherwise it factorises the d × d Hessian I + C XᵀWX. The factor only shapes the steps,
so for rows that came in fp32 it may be an fp32 one; gradients are always taken in fp64, and they say when it is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from .products import COARSE_FROM, factorise_, inner_products, solve_factorised, times

TOLERANCE = 1e-11
"""A layer is done after the step whose squared Newton decrement is below this share of its objective: converging
quadratically, that step leaves some 1e-20 of it."""
MAX_STEPS = 200
COARSE_STEPS = 25
"""Steps after which fp32 factors are given up for fp64 ones; Newton's method needs about ten."""
SMALLEST_WEIGHT = 1e-12


class NotPositiveDefinite(ArithmeticError):
    """Rounding has made a matrix impossible to factorise."""


class System(Protocol):
    """One way to write the weights w of a linear model as theta, and to solve for a Newton step in it."""

    coarse: bool

    def zero(self) -> Float[Tensor, "layer m"]:
        """The theta of w = 0."""

    def scores(self, theta: Float[Tensor, "layer m"]) -> Float[Tensor, "layer n"]:
        """X w."""

    def inner(self, a: Float[Tensor, "layer m"], b: Float[Tensor, "layer m"], scores: Tensor) -> Float[Tensor, "layer"]:
        """w(a) · w(b), given the scores X w(b)."""

    def step(
        self, theta: Float[Tensor, "layer m"], pull: Float[Tensor, "layer n"], weights: Float[Tensor, "layer n"]
    ) -> tuple[Float[Tensor, "layer m"], Float[Tensor, "layer"]]:
        """Changes of theta and b towards where the gradients w − Xᵀ pull and Σ pull vanish, to first order."""

    def coef(self, theta: Float[Tensor, "layer m"]) -> Float[Tensor, "layer d"]:
        """W itself."""


class Dual:
    """w = Xᵀ theta; for n < d. The gradients vanish where theta = pull and theta sums to 0."""

    def __init__(self, rows: Float[Tensor, "layer n d"], *, coarse: bool = False) -> None:
        self.coarse = coarse and rows.shape[1] >= COARSE_FROM
        self.rows, self.product = rows, inner_products(rows, coarse=False)
        self.rough = self.product.float() if self.coarse else self.product

    def zero(self) -> Tensor:
        """A number a row."""
        return self.rows.new_zeros(self.rows.shape[:2])

    def scores(self, theta: Tensor) -> Tensor:
        """K theta, in fp64 whatever the factors are."""
        return _times(self.product, theta)

    def inner(self, a: Tensor, b: Tensor, scores: Tensor) -> Tensor:
        """aᵀKb."""
        return (a * scores).sum(dim=1)

    def step(self, theta: Tensor, pull: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(I + WK) Δtheta + W 1 Δb = pull − theta with theta + Δtheta summing to 0."""
        if not self.coarse:
            self.rough = self.product
        root = weights.sqrt()
        rough_root = root.to(self.rough)
        system = rough_root[:, :, None] * self.rough * rough_root[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1)
        missing = pull - theta
        seen = _times(self.rough, missing.to(self.rough)).double()
        both = torch.stack([root * seen, root], dim=2)
        solved = root[:, :, None] * _solve(system, both)
        free, level = missing - solved[..., 0], solved[..., 1]  # (I + WK)⁻¹ applied to what is missing, and to W 1
        shift = (free + theta).sum(dim=1) / level.sum(dim=1)
        return free - shift[:, None] * level, shift

    def coef(self, theta: Tensor) -> Tensor:
        """Xᵀ theta."""
        return _times(self.rows.mT, theta)


class Primal:
    """theta = w; for n ≥ d."""

    def __init__(self, rows: Float[Tensor, "layer n d"], *, coarse: bool = False) -> None:
        self.coarse = coarse and rows.shape[2] >= COARSE_FROM
        self.rows, self.rough = rows, rows.float() if self.coarse else rows

    def zero(self) -> Tensor:
        """A number a dimension."""
        return self.rows.new_zeros(self.rows.shape[0], self.rows.shape[2])

    def scores(self, theta: Tensor) -> Tensor:
        """X w."""
        return _times(self.rows, theta)

    def inner(self, a: Tensor, b: Tensor, scores: Tensor) -> Tensor:
        """aᵀb."""
        return (a * b).sum(dim=1)

    def step(self, theta: Tensor, pull: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(I + XᵀWX) Δw + XᵀW1 Δb = Xᵀ pull − w and 1ᵀWX Δw + 1ᵀW1 Δb = Σ pull."""
        rough = self.rough if self.coarse else self.rows
        system = inner_products(rough * weights.sqrt().to(rough)[:, :, None], coarse=self.coarse)
        system.diagonal(dim1=1, dim2=2).add_(1)
        both = times(self.rows.mT, torch.stack([pull, weights], dim=2))
        missing, crossed = both[..., 0] - theta, both[..., 1]
        solved = _solve(system, torch.stack([missing, crossed], dim=2))
        above = pull.sum(dim=1) - (crossed * solved[..., 0]).sum(dim=1)
        below = weights.sum(dim=1) - (crossed * solved[..., 1]).sum(dim=1)
        shift = above / below.clamp_min(1e-9 * weights.sum(dim=1))
        return solved[..., 0] - shift[:, None] * solved[..., 1], shift

    def coef(self, theta: Tensor) -> Tensor:
        """Theta itself."""
        return theta


@dataclass(frozen=True)
class Optimum:
    """Where the objective is least."""

    theta: Float[Tensor, "layer m"]
    intercept: Float[Tensor, "layer"]
    steps: int


def system_of(rows: Float[Tensor, "layer n d"], *, coarse: bool = False) -> System:
    """The smaller of the two systems for centred rows."""
    kind = Dual if rows.shape[1] < rows.shape[2] else Primal
    return kind(rows, coarse=coarse)


def minimise(system: System, marks: Bool[Tensor, "n"], strength: float, start: Optimum | None = None) -> Optimum:
    """The one minimum for C = `strength`, to rounding; `start` from that of a neighbouring C for a path."""
    signs = 2 * marks.double() - 1
    if start is None:
        theta = system.zero()
        intercept = torch.logit(marks.double().mean()).repeat(len(theta))
    else:
        theta, intercept = start.theta, start.intercept
    level = system.scores(theta)
    steps = 0
    while steps < MAX_STEPS:
        steps += 1
        system.coarse = system.coarse and steps <= COARSE_STEPS
        scores = level + intercept[:, None]
        chances = torch.sigmoid(signs * scores)  # of the label that is there
        pull = strength * signs * (1 - chances)
        weights = (strength * chances * (1 - chances)).clamp_min(SMALLEST_WEIGHT * strength)
        try:
            move, shift = system.step(theta, pull, weights)
        except NotPositiveDefinite:
            if not system.coarse:
                raise
            system.coarse = False  # too ill-conditioned for fp32
            continue
        rise = system.scores(move)
        change = rise + shift[:, None]
        straight, crossed = system.inner(theta, theta, level), system.inner(theta, move, rise)
        descent = crossed - (pull * change).sum(dim=1)
        now = _objective(scores, signs, strength, straight)
        norms = (straight, crossed, system.inner(move, move, rise))
        length = _length(now, descent, norms, scores, change, signs, strength)
        theta = theta + length[:, None] * move
        intercept = intercept + length * shift
        level = level + length[:, None] * rise
        if bool((descent.abs() <= TOLERANCE * now.clamp_min(1e-300)).all()):
            break
    return Optimum(theta, intercept, steps)


def _length(
    now: Float[Tensor, "layer"],
    descent: Float[Tensor, "layer"],
    norms: tuple[Tensor, Tensor, Tensor],
    scores: Float[Tensor, "layer n"],
    change: Float[Tensor, "layer n"],
    signs: Float[Tensor, "n"],
    strength: float,
) -> Float[Tensor, "layer"]:
    """The largest of 1, ½, ¼, … at which each layer's objective falls by enough (Armijo's rule).

    `norms` are ‖w‖², w·Δw and ‖Δw‖²: along a step the objective needs nothing larger than the scores.
    """
    straight, crossed, squared = norms
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


def _solve(system: Float[Tensor, "layer m m"], right: Float[Tensor, "layer m k"]) -> Float[Tensor, "layer m k"]:
    if bool(factorise_(system).any()):
        raise NotPositiveDefinite(f"the Newton system of size {system.shape[1]} cannot be factorised in {system.dtype}")
    return solve_factorised(system, right).double()


def _times(matrix: Float[Tensor, "layer a b"], vector: Float[Tensor, "layer b"]) -> Float[Tensor, "layer a"]:
    return times(matrix, vector[..., None])[..., 0]
