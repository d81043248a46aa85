"""Ridge regression onto the two classes as +1 and −1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .linear import Hyperplane, SupervisedProbe
from .sample import Labelled, centred
from .solving.covariance import divide_by_covariance
from .solving.products import combined, inner_products, solve_products


class RidgeProbe(SupervisedProbe):
    """Minimises ‖y − Xw − b‖² + alpha ‖w‖² with y = ±1: `sklearn.linear_model.RidgeClassifier`.

    Examples:
        >>> RidgeProbe(alpha=1.0).fit(X, y).decision_function(X).shape
        (40, 3)
    """

    name = "ridge"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def _solve(self, sample: Labelled) -> Hyperplane:
        # Of fewer rows than dimensions the products are singular along their mean, which fp32 does not quite remove.
        tall = sample.rows.shape[0] >= sample.rows.shape[2]
        rows, mean = centred(sample.rows, coarse=sample.coarse and tall)
        targets = 2 * sample.marks.double() - 1
        centre = targets.mean()
        coef = ridge_solve(rows, self.alpha, targets - centre, coarse=sample.coarse)
        return Hyperplane(coef, centre - torch.linalg.vecdot(coef, mean))

    def question_directions(
        self, sample: Labelled, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """(XᵀX + alpha I)⁻¹ of each effect: of balanced classes Xᵀy is a multiple of the difference of means."""
        rows, _ = centred(sample.rows)
        alpha = rows.new_full((len(rows),), self.alpha)
        return divide_by_covariance(rows, alpha, effects.permute(1, 2, 0)).permute(2, 0, 1)


def ridge_solve(
    rows: Float[Tensor, "layer n d"], alpha: float, targets: Float[Tensor, "n"], *, coarse: bool = False
) -> Float[Tensor, "layer d"]:
    """(XᵀX + alpha I)⁻¹ Xᵀ y of centred rows, by the smaller of the two systems of normal equations."""
    layers, n, d = rows.shape
    right = targets.expand(layers, n)[..., None].contiguous()
    # A relative floor of a rounding error or two lets alpha = 0 pass where the rows have full rank or do not vary.
    product = inner_products(rows, coarse=coarse)
    ridge = (1e-14 * product.diagonal(dim1=1, dim2=2).double().sum(dim=1) + 1e-300).clamp_min(alpha)
    if n < d:
        return combined(rows, solve_products(rows, ridge, right, product, coarse=coarse))[..., 0]
    return solve_products(rows, ridge, combined(rows, right), product, coarse=coarse)[..., 0]
