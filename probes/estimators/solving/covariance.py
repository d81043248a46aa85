"""Covariances of few rows in many dimensions: how much to shrink them, and how to divide by them, all layers at once.

Neither needs the d × d matrix while there are fewer rows than dimensions: the n × n matrix of inner products has the
same eigenvalues, and Woodbury's identity turns its inverse into that of the covariance.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ....activations.basics.errors import DefectionError
from .products import inner_products, solve_products, squared_norm, times

RULES = ("ledoit-wolf", "oas")
SMALLEST_RIDGE = 1e-10
"""A relative ridge far below any real variance keeps an unshrunk, rank-deficient covariance solvable."""
WOODBURY_RIDGE = 1e-7
"""Below this ratio of ridge to variance Woodbury's differences cancel, and the d × d matrix is factorised instead."""


def shrinkage_of(
    rows: Float[Tensor, "layer n d"], rule: float | str, product: Float[Tensor, "layer m m"] | None = None
) -> Float[Tensor, "layer"]:
    """The share of the identity in (1 − s) S + s (tr S / d) I for centred rows, S = XᵀX / n.

    A number is taken as it is; "ledoit-wolf" is the optimum of Ledoit and Wolf 2004, "oas" that of Chen, Wiesel,
    Eldar and Hero 2010 (equation 23), both as in scikit-learn. Rows without variance give 0.
    """
    if not isinstance(rule, str):
        if not 0 <= rule <= 1:
            raise DefectionError(f"shrinkage {rule!r} is not between 0 and 1")
        return torch.full((len(rows),), float(rule), dtype=torch.float64, device=rows.device)
    if rule not in RULES:
        raise DefectionError(f"unknown shrinkage {rule!r}: give a number between 0 and 1, or {' or '.join(RULES)}")
    _, n, d = rows.shape
    product = inner_products(rows, coarse=False) if product is None else product
    squares = squared_norm(product) / n**2  # ‖S‖²
    lengths = torch.linalg.vector_norm(rows, dim=2).double().square()
    mean = lengths.sum(dim=1) / (n * d)  # tr S / d
    if rule == "oas":
        spread = squares / d**2
        above, below = spread + mean**2, (n + 1) * (spread - mean**2 / d)
        return torch.where(below > 0, above / below.clamp_min(1e-300), torch.ones_like(above)).clamp_max(1)
    distance = (squares - d * mean**2) / d
    noise = torch.minimum((lengths.square().sum(dim=1) / n - squares) / (d * n), distance)
    return torch.where(noise > 0, noise / distance.clamp_min(1e-300), torch.zeros_like(noise))


def divide_by_covariance(
    rows: Float[Tensor, "layer n d"],
    ridge: Float[Tensor, "layer"],
    vectors: Float[Tensor, "layer d k"],
    product: Float[Tensor, "layer m m"] | None = None,
    *,
    coarse: bool = False,
) -> Float[Tensor, "layer d k"]:
    """(XᵀX + ridge · I)⁻¹ V, by the smaller of an n × n and a d × d Cholesky factor.

    Where the rows do not vary at all the vectors come back as they are.
    """
    _, n, d = rows.shape
    spread = squared_norm(rows) / d
    flat = spread <= 0
    ridge = torch.where(flat, torch.ones_like(ridge), torch.maximum(ridge, SMALLEST_RIDGE * spread))
    if n >= d:
        return solve_products(rows, ridge, vectors, product, coarse=coarse)
    if bool((flat | (ridge > WOODBURY_RIDGE * spread)).all()):
        inside = solve_products(rows, ridge, times(rows, vectors), product, coarse=coarse)
        return (vectors - times(rows.mT, inside)) / ridge[:, None, None]
    covariance = rows.mT @ rows
    covariance.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    return torch.cholesky_solve(vectors, torch.linalg.cholesky(covariance))
