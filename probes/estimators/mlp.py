"""A small multilayer perceptron: the yardstick that says what a linear probe leaves on the table."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ..statistics.scale import divisor
from .estimator import ProbeEstimator
from .sample import Labelled, Sample, centred, span
from .solving.lbfgs import minimise


class MLPProbe(ProbeEstimator):
    """One hidden layer of `hidden` tanh units on rows scaled to mean 0 and a common spread of 1 a dimension.

    Minimises the mean log loss plus `penalty`/2 times the squared weights; the initial weights are drawn from `seed`,
    and the point kept is the best one met on the way. No part of the data is set aside, nothing depends on an order
    of batches, and each layer has a network of its own. It is not linear, so no probe file can hold it.

    Examples:
        >>> MLPProbe(hidden=2, max_steps=20).fit(X, y).decision_function(X).shape
        (40, 3)
    """

    name = "mlp"

    def __init__(self, hidden: int = 16, penalty: float = 1e-2, max_steps: int = 1000, seed: int = 0) -> None:
        self.hidden = hidden
        self.penalty = penalty
        self.max_steps = max_steps
        self.seed = seed

    def _fit(self, sample: Sample) -> None:
        parts = [self._solve(chunk) for chunk in sample.labelled_for(self.name).chunks()]
        names = ("location_", "inner_", "inner_bias_", "outer_", "outer_bias_", "converged_")
        for name, tensors in zip(names, zip(*parts, strict=True), strict=True):
            setattr(self, name, torch.cat(tensors))

    def _solve(self, sample: Labelled) -> tuple[Tensor, ...]:
        rows, location = centred(sample.rows)
        spread = rows.square().mean(dim=(1, 2)).sqrt()
        scale = divisor(spread)
        basis = span(rows)  # weights outside the rows' span stay at 0 under the penalty
        short = rows @ basis.mT / scale[:, None, None]
        layers, _, size = short.shape
        width, signs = self.hidden, 2 * sample.marks.double() - 1
        sizes = (size * width, width, width, 1)
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(sum(sizes), generator=generator, dtype=torch.float64).to(rows.device)
        start = start * torch.cat(
            [start.new_full((k,), s) for k, s in zip(sizes, (size**-0.5, 0, width**-0.5, 0), strict=True)]
        )

        def losses(points: Float[Tensor, "layer p"]) -> Float[Tensor, "layer"]:
            inner, inner_bias, outer, outer_bias = points.split(sizes, dim=1)
            hidden = torch.tanh(short @ inner.view(layers, size, width) + inner_bias[:, None])
            scores = (hidden @ outer[..., None])[..., 0] + outer_bias
            squares = inner.square().sum(dim=1) + outer.square().sum(dim=1)
            loss: Tensor = softplus(-signs * scores).mean(dim=1) + self.penalty / 2 * squares
            return loss

        found = minimise(losses, start.repeat(layers, 1), tolerance=1e-6, max_steps=self.max_steps)
        inner, inner_bias, outer, outer_bias = found.point.split(sizes, dim=1)
        back = basis.mT @ inner.reshape(layers, size, width) / scale[:, None, None]
        return location, back, inner_bias, outer, outer_bias[:, 0], found.converged

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        location, inner, inner_bias, outer, outer_bias = (
            torch.as_tensor(getattr(self, name), device=rows.device)
            for name in ("location_", "inner_", "inner_bias_", "outer_", "outer_bias_")
        )
        scores = [
            torch.tanh((rows[:, i].double() - location[i]) @ inner[i] + inner_bias[i]) @ outer[i] + outer_bias[i]
            for i in range(len(location))
        ]
        return torch.stack(scores, dim=1)
