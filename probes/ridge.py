"""Ridge regression onto the two classes as +1 and −1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .estimator import Hyperplane, LinearProbe
from .products import solve_products, squared_norm, times
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
        coef = ridge_solve(rows, self.alpha, targets - centre, coarse=sample.coarse)
        return Hyperplane(coef, centre - torch.einsum("ld,ld->l", coef, mean))


def ridge_solve(
    rows: Float[Tensor, "layer n d"], alpha: float, targets: Float[Tensor, "n"], *, coarse: bool = False
) -> Float[Tensor, "layer d"]:
    """(XᵀX + alpha I)⁻¹ Xᵀ y of centred rows, by the smaller of the two systems of normal equations."""
    layers, n, d = rows.shape
    right = targets.expand(layers, n)[..., None].contiguous()
    # A relative floor of a rounding error or two lets alpha = 0 pass where the rows have full rank or do not vary.
    ridge = (1e-14 * squared_norm(rows) + 1e-300).clamp_min(alpha)
    if n < d:
        return times(rows.mT, solve_products(rows, ridge, right, coarse=coarse))[..., 0]
    return solve_products(rows, ridge, times(rows.mT, right), coarse=coarse)[..., 0]
