"""Contrast-consistent search (Burns et al. 2022): a direction on which the two answers to a question contradict."""

from __future__ import annotations

import torch
from torch import Tensor

from ..statistics.scale import divisor
from .linear import Hyperplane
from .mean_difference import plane_through
from .pca import PairPCAProbe, checked_pairs, signed
from .sample import Labelled, span, stacked
from .solving.lbfgs import minimise


class ContrastConsistentSearch(PairPCAProbe):
    """Finds w and b such that p(x) = σ(w·x + b) is unsure of neither answer and gives the two opposite chances.

    Minimises the mean over pairs of (p₁ + p₂ − 1)² + min(p₁, p₂)² plus a little ‖w‖², which keeps the minimum finite.
    The first and the second answers are each normalised to mean 0 and a common spread, so that the word itself cannot
    be read (their section 2.2). Labels only choose between a direction and its opposite. Of `restarts` random starts
    the lowest loss wins, layer by layer. Arrays need `pairs` [pair, 2].

    Examples:
        >>> ContrastConsistentSearch().fit(X, y, pairs=pairs).decision_function(X).shape
        (40, 3)
    """

    name = "ccs"

    def __init__(self, restarts: int = 10, penalty: float = 1e-3, seed: int = 0) -> None:
        self.restarts = restarts
        self.penalty = penalty
        self.seed = seed

    def _solve(self, sample: Labelled) -> Hyperplane:
        rows, pairs = stacked(sample.rows), checked_pairs(sample, self.name)
        sides = rows[:, pairs.T]  # [layer, side, pair, d]
        sides = sides - sides.mean(dim=2, keepdim=True)
        spread = sides.square().mean(dim=(1, 2, 3)).sqrt()
        sides = sides / divisor(spread)[:, None, None, None]
        # The loss and its gradient see only inner products with the rows: a basis of their span loses nothing.
        flat = sides.flatten(1, 2)
        basis = span(flat)
        short = (flat @ basis.mT).unflatten(1, sides.shape[1:3])
        layers, size = short.shape[0], short.shape[-1]
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(1, self.restarts, size + 1, generator=generator, dtype=torch.float64).to(rows.device)
        start = start.repeat(layers, 1, 1) / size**0.5
        start[..., -1] = 0

        def losses(points: Tensor) -> Tensor:
            weights = points.view(layers, self.restarts, size + 1)
            scores = torch.einsum("lspd,lrd->lrsp", short, weights[..., :-1]) + weights[..., -1][..., None, None]
            first, second = torch.sigmoid(scores).unbind(dim=2)
            consistent = (first + second - 1).square()
            confident = torch.minimum(first, second).square()
            loss = (consistent + confident).mean(dim=2) + self.penalty * weights[..., :-1].square().sum(dim=2)
            return loss.flatten()

        found = minimise(losses, start.flatten(0, 1), tolerance=1e-7, max_steps=300)
        loss, best = found.loss.view(layers, self.restarts).min(dim=1)
        weights = found.point.view(layers, self.restarts, -1)[torch.arange(layers, device=best.device), best, :-1]
        coef = signed(torch.einsum("lk,lkd->ld", weights, basis), sample.means)
        plane = plane_through(coef, rows.mean(dim=1))
        return Hyperplane(plane.coef, plane.intercept, {"loss": loss})
