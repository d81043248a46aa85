"""Ridge regression onto the two classes as +1 and −1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .estimator import Hyperplane, LinearProbe
from .sample import Sample, centred


class RidgeProbe(LinearProbe):
    """Minimises ‖y − Xw − b‖² + alpha ‖w‖² with y = ±1: `sklearn.linear_model.RidgeClassifier`."""

    name = "ridge"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        rows, mean = centred(sample.rows)
        targets = 2 * sample.marks.double() - 1
        centre = targets.mean()
        coef = ridge_solve(rows, self.alpha, targets - centre)
        return Hyperplane(coef, centre - torch.einsum("ld,ld->l", coef, mean))


def ridge_solve(
    rows: Float[Tensor, "layer n d"], alpha: float, targets: Float[Tensor, "n"]
) -> Float[Tensor, "layer d"]:
    """(XᵀX + alpha I)⁻¹ Xᵀ y of centred rows, by the smaller of the two systems of normal equations."""
    layers, n, d = rows.shape
    right = targets.expand(layers, n)[..., None]
    if n < d:
        return (rows.mT @ torch.cholesky_solve(right, _factor(rows @ rows.mT, alpha)))[..., 0]
    return torch.cholesky_solve(rows.mT @ right, _factor(rows.mT @ rows, alpha))[..., 0]


def _factor(square: Float[Tensor, "layer m m"], alpha: float) -> Float[Tensor, "layer m m"]:
    # A relative floor of a rounding error or two lets alpha = 0 pass where the rows have full rank or do not vary.
    floor = 1e-14 * square.diagonal(dim1=1, dim2=2).sum(dim=1) + 1e-300
    square.diagonal(dim1=1, dim2=2).add_(floor.clamp_min(alpha)[:, None])
    return torch.linalg.cholesky(square)
