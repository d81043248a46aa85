"""Leading principal components, a layer at a time, by ARPACK."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

DIRECT = 96
"""Up to so many rows or dimensions LAPACK takes all eigenvectors in less time than an iteration starts in."""
CONVERGED = 1e-10
DEAD = 1e-7
"""Components with less than this share of the whole spread (standard deviations) are rounding, and become zero."""


def leading_components(rows: Float[Tensor, "layer n d"], count: int) -> Float[Tensor, "layer component d"]:
    """Orthonormal leading principal components of centred rows, the largest first, in fp64.

    Components without variance are zero vectors, which project nothing away.
    """
    if count == 0:
        return rows.new_zeros(len(rows), 0, rows.shape[2], dtype=torch.float64)
    found = [_of_one(matrix, count) for matrix in rows.cpu().numpy()]
    return torch.from_numpy(np.stack(found)).double().to(rows.device)


def _of_one(rows: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """[component, d], of one layer's rows [n, d]."""
    tall = rows if len(rows) >= rows.shape[1] else rows.T
    squares, vectors = _eigenvectors(tall, count)
    components = vectors.T if tall is rows else (rows.T @ vectors).T
    norms = np.linalg.norm(components, axis=1)
    dead = (squares <= DEAD**2 * np.square(rows).sum()) | (norms == 0)
    components[dead], norms[dead] = 0, 1
    result: NDArray[np.floating] = components / norms[:, None]
    return result


def _eigenvectors(tall: NDArray[np.floating], count: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The largest eigenvalues of AᵀA and their vectors, largest first; from a fixed start, so that no draw matters."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    size = tall.shape[1]
    if size > max(DIRECT, 4 * count) and tall.any():
        product = LinearOperator((size, size), matvec=lambda vector: tall.T @ (tall @ vector), dtype=tall.dtype)
        try:
            values, vectors = eigsh(product, count, v0=np.random.default_rng(0).normal(size=size), tol=CONVERGED)
            order = np.argsort(-values)
            return values[order], vectors[:, order]
        except ArpackError:  # eigenvalues too close together
            pass
    values, vectors = eigh(tall.T @ tall, subset_by_index=[size - count, size - 1])
    return values[::-1], vectors[:, ::-1]
