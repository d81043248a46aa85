"""Matrices of inner products and the systems they make: factorised in the rows' own precision, polished in fp64.

Forming and factorising XXᵀ or XᵀX is where the time of a fit goes. For rows that came in fp32 or bf16 it is done in
fp32, at twice the speed, and each solution is then refined against residuals in fp64 until it is the fp64 solution
(iterative refinement: Higham 2002, chapter 12). Where that does not converge the product is taken again in fp64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs
from torch import Tensor

COARSE_FROM = 128
"""Smaller matrices are not worth a second precision."""
CONVERTED = 2**16
"""Numbers converted to fp64 at a time: half a megabyte, so that they stay in the cache."""
REFINEMENTS = 10
REFINED = 1e-10


def inner_products(rows: Float[Tensor, "layer n d"], *, coarse: bool) -> Float[Tensor, "layer m m"]:
    """The smaller of XXᵀ and XᵀX: they have the same trace, Frobenius norm and non-zero eigenvalues.

    With `coarse` the products are taken in fp32 where the matrix is large enough for that to pay.
    """
    tall = rows if rows.shape[1] >= rows.shape[2] else rows.mT
    size = tall.shape[2]
    if coarse and size >= COARSE_FROM:
        tall = tall.float()
    if tall.is_cuda:
        return tall.mT @ tall
    # NumPy sees that the product is symmetric and computes one half of it (BLAS syrk); PyTorch computes both.
    columns = tall.numpy()
    return torch.from_numpy(np.matmul(columns.transpose(0, 2, 1), columns))


def times(matrix: Float[Tensor, "*layer a b"], vectors: Float[Tensor, "*layer b k"]) -> Float[Tensor, "*layer a k"]:
    """Each layer's matrix times a few vectors, on a CPU by NumPy: PyTorch takes up to ten times as long."""
    if matrix.is_cuda:
        return matrix @ vectors
    return torch.from_numpy(np.matmul(matrix.numpy(), vectors.numpy()))


def combined(rows: Float[Tensor, "layer n d"], weights: Float[Tensor, "layer n k"]) -> Float[Tensor, "layer d k"]:
    """Xᵀ `weights` in fp64; of fp32 rows a block at a time."""
    if rows.is_cuda or rows.dtype == torch.float64:
        return times(rows.double().mT, weights)
    total = torch.zeros(len(rows), rows.shape[2], weights.shape[2], dtype=torch.float64)
    for layer, (matrix, some) in enumerate(zip(rows.numpy(), weights.numpy(), strict=True)):
        for block in _blocks(matrix):
            total.numpy()[layer] += matrix[block].astype(np.float64).T @ some[block]
    return total


def products_times(rows: Float[Tensor, "layer n d"], vectors: Float[Tensor, "layer m k"]) -> Float[Tensor, "layer m k"]:
    """The smaller of XXᵀ and XᵀX, which is not formed, times a few vectors: in fp64, of fp32 rows a block at a time."""
    tall = rows if rows.shape[1] >= rows.shape[2] else rows.mT
    if tall.is_cuda or tall.dtype == torch.float64:
        exact = tall.double()
        return times(exact.mT, times(exact, vectors))
    total = torch.zeros_like(vectors)
    for layer, (matrix, right) in enumerate(zip(tall.numpy(), vectors.numpy(), strict=True)):
        for block in _blocks(matrix):
            part = matrix[block].astype(np.float64)
            total.numpy()[layer] += part.T @ (part @ right)
    return total


def _blocks(matrix: NDArray[np.floating]) -> Iterator[slice]:
    step = max(1, CONVERTED // matrix.shape[1])
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def squared_norm(rows: Float[Tensor, "layer n d"]) -> Float[Tensor, "layer"]:
    """Sum of all squares, without a copy to hold them."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=2)
    return norms.double().square().sum(dim=1)


def factorise_(matrix: Float[Tensor, "layer m m"]) -> Bool[Tensor, "layer"]:
    """Put the Cholesky factor U of each matrix, UᵀU, into its upper triangle; the marks are of those that have none.

    On a CPU by SciPy's LAPACK: PyTorch's takes up to twice as long.
    """
    if matrix.is_cuda:
        factor, info = torch.linalg.cholesky_ex(matrix, upper=True)
        matrix.copy_(factor)
        failed: Tensor = info.bool()
        return failed
    assert matrix.is_contiguous()  # or LAPACK would be handed a copy
    arrays = matrix.numpy()
    (potrf,) = get_lapack_funcs(("potrf",), (arrays,))
    # Fortran sees each matrix transposed, so that its lower triangle is the upper one here.
    return torch.tensor([potrf(array.T, lower=1, clean=0, overwrite_a=1)[1] > 0 for array in arrays])


def solve_factorised(
    factors: Float[Tensor, "layer m m"], right: Float[Tensor, "layer m k"]
) -> Float[Tensor, "layer m k"]:
    """What `factorise_` left behind, applied: (UᵀU)⁻¹ `right` in the factors' precision."""
    right = right.to(factors)
    if factors.is_cuda:
        return torch.cholesky_solve(right, factors, upper=True)
    (potrs,) = get_lapack_funcs(("potrs",), (factors.numpy(),))
    solved = [potrs(one.T, some, lower=1)[0] for one, some in zip(factors.numpy(), right.numpy(), strict=True)]
    return torch.from_numpy(np.stack(solved))


def solve_products(
    rows: Float[Tensor, "layer n d"],
    ridge: Float[Tensor, "layer"],
    right: Float[Tensor, "layer m k"],
    product: Float[Tensor, "layer m m"] | None = None,
    *,
    coarse: bool,
) -> Float[Tensor, "layer m k"]:
    """(P + ridge · I)⁻¹ `right`, where P is XXᵀ when n < d and XᵀX otherwise; `product` is P, where it is at hand."""
    product = inner_products(rows, coarse=coarse) if product is None else product.clone()
    product.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    failed = factorise_(product)
    if product.dtype == torch.float64:
        return solve_factorised(product, right)
    if not bool(failed.any()):
        solution = solve_factorised(product, right).double()
        wanted = REFINED * right.norm(dim=1, keepdim=True)
        for _ in range(REFINEMENTS):
            residual = right - products_times(rows, solution) - ridge[:, None, None] * solution
            if bool((residual.norm(dim=1, keepdim=True) <= wanted).all()):
                return solution
            solution = solution + solve_factorised(product, residual).double()
    return solve_products(rows.double(), ridge, right, coarse=False)
