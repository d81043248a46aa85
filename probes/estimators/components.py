"""Principal components, all layers at once, and the two probes that are a first component with a sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.reading.residuals import Residuals
from .estimator import Hyperplane, LinearProbe
from .fitting import answer_pairs
from .guard import Evidence
from .mean_difference import plane_through
from .sample import Means, Sample, centred
from .solving.products import squared_norm, summed_products, times

DIRECT = 96
"""Up to so many rows or dimensions the eigenvectors are taken all at once; beyond it the leading ones are iterated."""
SPARE = 5
CHECKED_EVERY = 4
"""Steps of Lanczos' iteration between looks at whether it has converged."""
MOST = 120
"""Size of the Krylov space at which an iteration starts again from the best it has, or is given up."""
MAX_RESTARTS = 40
FORMED = 1024
"""Up to so many rows or dimensions the product is formed and multiplied by, instead of the rows twice."""
CONVERGED = 1e-8
COARSELY_CONVERGED = 1e-6
"""Of an iteration in fp32; what rounding allows is some 1e-7."""
SQUARINGS, STEPS, ROUNDS = 4, 8, 16
"""Of power iteration: up to 2⁴ · 8 · 16 products before the eigenvectors are taken by LAPACK instead."""
DEAD = 1e-7
"""Components with less than this share of the whole spread (standard deviations) are rounding, and become zero."""


def leading_components(rows: Float[Tensor, "layer n d"], count: int) -> Float[Tensor, "layer component d"]:
    """Orthonormal leading principal components of centred rows, the largest first, in fp64.

    To rounding for fp64 rows. Of fp32 rows the inner products have fp32 terms, which moves a component by some 1e-7
    over the gap that parts it from the next, relative to the largest.
    Components without variance (PITFALLS 16) are zero vectors, which project nothing away.
    """
    layers, n, d = rows.shape
    if count == 0:
        return rows.new_zeros(layers, 0, d, dtype=torch.float64)
    size = min(n, d)
    # Not all that many: each step makes a vector orthogonal to those before.
    found = _of_rows(rows, count) if size > max(DIRECT, 10 * count) and not rows.is_cuda else None
    if found is not None:
        top, values = found
    elif size > max(FORMED, 2 * (count + SPARE)):
        rows = rows.double()
        top, values = _iterated(lambda vectors: _twice(rows, vectors), rows, count)
    else:
        product = summed_products(rows)
        if product.is_cuda and size > max(DIRECT, 2 * (count + SPARE)):
            top, values = _iterated(lambda vectors: product @ vectors, rows, count)
        elif count == 1 and size <= DIRECT:
            top, values = _first(product, coarse=rows.dtype != torch.float64)
        else:
            top, values = _leading_eigenvectors(product.to(rows) if size <= DIRECT else product, count)
    components = times(rows.mT, top.to(rows)).mT.double() if n < d else top.mT
    total, spreads = squared_norm(rows).sqrt(), values.clamp_min(0).sqrt()
    norms = components.norm(dim=2)
    real = (spreads > DEAD * total[:, None]) & (norms > 0)
    return torch.where(real[..., None], components / norms.clamp_min(1e-300)[..., None], torch.zeros_like(components))


def _first(
    product: Float[Tensor, "layer m m"], *, coarse: bool
) -> tuple[Float[Tensor, "layer m 1"], Float[Tensor, "layer 1"]]:
    """The first eigenvector and its eigenvalue of small matrices, all at once, by powers of them.

    A few squarings make several products out of each multiplication, and the largest column is the start. With
    `coarse` the powers are fp32, and only what they leave is measured in fp64. A matrix whose first two eigenvalues
    lie too close for that is left to LAPACK.
    """
    power = product
    for step in range(SQUARINGS + 1):
        power = times(power, power) if step else power
        power = power / power.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(1e-30)[:, None, None]
        power = power.float() if coarse else power
    largest = power.diagonal(dim1=1, dim2=2).argmax(dim=1)
    narrow = power[torch.arange(len(power), device=power.device), :, largest, None]
    enough = COARSELY_CONVERGED / 10 if coarse else CONVERGED
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            narrow = times(power, narrow)
        top = narrow.double()
        top = top / top.norm(dim=1, keepdim=True).clamp_min(1e-300)
        narrow = top.to(power)
        image = times(product, top)
        values = (top * image).sum(dim=1)
        left = ((image - top * values[:, None]).norm(dim=1) > enough * values)[:, 0]
        if not bool(left.any()):
            break
    else:
        top[left], values[left] = _leading_eigenvectors(product[left], 1)
    return top, values


def _of_rows(
    rows: Float[Tensor, "layer n d"], count: int
) -> tuple[Float[Tensor, "layer m k"], Float[Tensor, "layer k"]] | None:
    """Leading eigenvectors of the smaller of XXᵀ and XᵀX, which is never formed, and their eigenvalues.

    None when a layer does not converge.
    """
    vectors, values = [], []
    for matrix in rows.numpy():
        found = _lanczos(matrix if len(matrix) >= matrix.shape[1] else matrix.T, count)
        if found is None:
            return None
        vectors.append(found[0])
        values.append(found[1])
    return torch.from_numpy(np.stack(vectors)).double(), torch.from_numpy(np.stack(values)).double()


def _lanczos(tall: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The leading eigenvectors of AᵀA and their eigenvalues, by Lanczos' iteration in A's own precision.

    From a fixed start, with full reorthogonalisation (Saad 2011, section 6.3). None where `MOST` steps are not enough,
    and of several where the space ends: it holds one vector only of those that share an eigenvalue.
    """
    enough = COARSELY_CONVERGED / 10 if tall.dtype == np.float32 else CONVERGED
    size = tall.shape[1]
    basis, entries = np.empty((min(MOST, size), size), tall.dtype), np.zeros((MOST, MOST))
    vector = np.random.default_rng(0).standard_normal((size,)).astype(tall.dtype)
    vector /= np.linalg.norm(vector)
    for step in range(len(basis)):
        basis[step] = vector
        known = basis[: step + 1]
        image = (tall @ vector) @ tall
        entries[step, step] = vector @ image
        if entries[0, 0] == 0:
            return np.zeros((size, count), tall.dtype), np.zeros(count)
        for _ in range(2):  # twice is enough (Parlett 1998)
            image -= (known @ image) @ known
        beside = float(np.linalg.norm(image))
        ended = beside <= enough * entries[0, 0]
        if ended or step % CHECKED_EVERY == CHECKED_EVERY - 1:
            values, turns = np.linalg.eigh(entries[: step + 1, : step + 1])
            values, turns = values[: -count - 1 : -1], turns[:, : -count - 1 : -1]
            settled = count == 1 if ended else step >= count
            if settled and (beside * np.abs(turns[-1]) <= enough * values[0]).all():
                return known.T @ turns.astype(tall.dtype), values
        if ended:
            break
        if step + 1 < len(basis):
            entries[step, step + 1] = entries[step + 1, step] = beside
            vector = image / beside
    return None


def _leading_eigenvectors(
    product: Float[Tensor, "layer m m"], count: int
) -> tuple[Float[Tensor, "layer m k"], Float[Tensor, "layer k"]]:
    """The leading eigenvectors and their eigenvalues; PyTorch only ever finds all of them, in many times the time."""
    if product.is_cuda:
        values, vectors = torch.linalg.eigh(product.double())
        return vectors[:, :, -count:].flip(-1), values[:, -count:].flip(-1)
    found = [_of_one(matrix, count) for matrix in product.numpy()]
    values, vectors = (torch.from_numpy(np.stack(parts)).double() for parts in zip(*found, strict=True))
    return vectors.flip(-1), values.flip(-1)


def _of_one(matrix: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """By ARPACK's restarted Lanczos iteration from a fixed start; small or stubborn matrices by LAPACK."""
    from scipy.linalg import eigh, get_lapack_funcs
    from scipy.sparse.linalg import ArpackError, eigsh

    size = len(matrix)
    if size > max(DIRECT, 2 * (count + SPARE)) and np.trace(matrix) > 0:
        try:
            values, vectors = eigsh(matrix, count, v0=np.random.default_rng(0).normal(size=size), tol=CONVERGED)
            order = np.argsort(values)
            return values[order], vectors[:, order]
        except ArpackError:
            pass
    # SciPy's own function for this calls the same routine in twice the time.
    (syevr,) = get_lapack_funcs(("syevr",), (matrix,))
    values, vectors, *_, failed = syevr(matrix, range="I", il=size - count + 1, iu=size, lower=1)
    if failed:
        values, vectors = eigh(matrix, subset_by_index=[size - count, size - 1])
    return values[:count], vectors


def _twice(rows: Float[Tensor, "layer n d"], vectors: Float[Tensor, "layer m k"]) -> Float[Tensor, "layer m k"]:
    """The product of the rows, which is not formed, times some vectors."""
    wide = rows.shape[1] < rows.shape[2]
    return rows @ (rows.mT @ vectors) if wide else rows.mT @ (rows @ vectors)


def _iterated(
    times: Callable[[Tensor], Tensor], rows: Float[Tensor, "layer n d"], count: int
) -> tuple[Float[Tensor, "layer m k"], Float[Tensor, "layer k"]]:
    """Leading eigenvectors of the smaller of XXᵀ and XᵀX, given as `times`, and their eigenvalues; a fixed start."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(min(rows.shape[1:]), count + SPARE, generator=generator, dtype=torch.float64).to(rows.device)
    block = torch.linalg.qr(start.expand(len(rows), *start.shape)).Q
    block, values = _krylov(times, block, count, CONVERGED)
    return block[..., :count], values[:, :count]


def _krylov(
    times: Callable[[Tensor], Tensor], block: Float[Tensor, "layer m k"], count: int, tolerance: float
) -> tuple[Float[Tensor, "layer m k"], Float[Tensor, "layer k"]]:
    """The leading eigenvectors of a symmetric operator, as many as the block has, the first `count` of them converged.

    A block Krylov space with full reorthogonalisation, started again from its best vectors when it has grown too
    large (Saad 2011, section 6.3).
    """
    size, width = block.shape[1:]
    values = block.new_zeros(len(block), width)
    for _ in range(MAX_RESTARTS):
        basis, images = block, times(block)
        while True:
            values, turn = torch.linalg.eigh(basis.mT @ images)
            turn, values = turn[..., -width:].flip(-1), values[:, -width:].flip(-1)
            block, moved = basis @ turn, images @ turn
            residual = (moved - block * values[:, None])[..., :count].norm(dim=1)
            if bool((residual <= tolerance * values[:, :1].clamp_min(1e-30)).all()):
                return block, values
            if basis.shape[2] + width > min(MOST, size):
                break
            fresh = images[..., -width:]
            for _ in range(2):  # twice is enough (Parlett 1998)
                fresh = torch.linalg.qr(fresh - basis @ (basis.mT @ fresh)).Q
            basis, images = torch.cat([basis, fresh], dim=2), torch.cat([images, times(fresh)], dim=2)
    return block, values


class PCAProbe(LinearProbe):
    """The first principal component of the contrast texts, towards the defecting answers: `sklearn.decomposition.PCA`.

    Labels only choose between the component and its opposite.
    """

    name = "pca"

    @property
    def sees(self) -> frozenset[Evidence]:
        """Contrast texts."""
        return frozenset({Evidence.CONTRAST})

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        rows, mean = centred(sample.rows, coarse=sample.coarse)
        component = leading_components(rows, 1)[:, 0]
        scores = times(rows, component[..., None].to(rows))[..., 0].double()
        agreement = scores[:, sample.marks].mean(dim=1) - scores[:, ~sample.marks].mean(dim=1)
        return plane_through(torch.where(agreement[:, None] < 0, -component, component), mean)


class PairPCAProbe(PCAProbe):
    """The first principal component of the differences within pairs (Zou et al. 2023, "reading vectors", linear scan).

    Which answer is subtracted from which is random in the paper; here both orders are taken, so that the differences
    have mean 0 and the result depends on no draw. Arrays need `pairs` [pair, 2], row numbers of two answers each.
    """

    name = "pair-pca"

    def _known(self, contrast: Residuals, clean: Residuals | None) -> dict[str, Tensor | None]:
        return {"pairs": answer_pairs(contrast)}

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        pairs = checked_pairs(sample, self.name)
        kind = torch.promote_types(sample.rows.dtype, torch.float32)
        gaps = sample.rows[pairs[:, 0]].to(kind).sub_(sample.rows[pairs[:, 1]])
        component = leading_components(gaps.transpose(0, 1).contiguous(), 1)[:, 0]
        return plane_through(signed(component, sample.means), sample.means.all)


def signed(directions: Float[Tensor, "layer d"], means: Means) -> Float[Tensor, "layer d"]:
    """Each direction or its opposite, so that the defecting rows lie higher on average."""
    agreement = torch.linalg.vecdot(directions, means.defecting - means.other)
    return torch.where(agreement[:, None] < 0, -directions, directions)


def checked_pairs(sample: Sample, name: str) -> Int[Tensor, "pair 2"]:
    """The sample's pairs; DefectionError when there are none, or they name rows that are not there."""
    if sample.pairs is None:
        raise DefectionError(f"a {name} probe needs pairs: [pair, 2] row numbers of the two answers to each question")
    pairs = sample.pairs
    n = 0 if sample.rows is None else len(sample.rows)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.min() < 0 or pairs.max() >= n:
        raise DefectionError(f"pairs must be [pair, 2] row numbers below {n}, not of shape {tuple(pairs.shape)}")
    return pairs
