"""Principal components, all layers at once, and the two probes that are a first component with a sign."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations.errors import DefectionError
from ..activations.residuals import Residuals
from .estimator import Hyperplane, LinearProbe
from .fitting import answer_pairs
from .guard import Evidence
from .mean_difference import plane_through
from .products import inner_products
from .sample import Sample, centred, class_means, stacked

DIRECT = 96
"""Up to so many rows or dimensions the eigenvectors are taken all at once; beyond it the leading ones are iterated."""
SPARE = 5
MOST = 120
"""Size of the Krylov space at which the iteration starts again from the best it has."""
MAX_RESTARTS = 40
FORMED = 1024
"""Up to so many rows or dimensions the product is formed and multiplied by, instead of the rows twice."""
CONVERGED = 1e-8
ROUGHLY = 1e-5
DEAD = 1e-7
"""Components with less than this share of the whole spread (standard deviations) are rounding, and become zero."""


def leading_components(
    rows: Float[Tensor, "layer n d"], count: int, *, coarse: bool = False
) -> Float[Tensor, "layer component d"]:
    """Orthonormal leading principal components of centred rows, the largest first, to rounding.

    With `coarse` (rows that came in fp32) the iteration begins on fp32 products and ends on the rows in fp64.
    Components without variance (PITFALLS 16) are zero vectors, which project nothing away.
    """
    layers, n, d = rows.shape
    if count == 0:
        return rows.new_zeros(layers, 0, d)
    if min(n, d) <= max(DIRECT, 2 * (count + SPARE)):
        eigenvalues, vectors = torch.linalg.eigh(inner_products(rows, coarse=False))
        top, spreads = vectors[:, :, -count:].flip(-1), eigenvalues[:, -count:].flip(-1).clamp_min(0).sqrt()
    else:
        top, spreads = _iterated(rows, count, coarse=coarse)
    components = (top.mT @ rows) if n < d else top.mT
    total = rows.square().sum(dim=(1, 2)).sqrt()
    norms = components.norm(dim=2)
    real = (spreads > DEAD * total[:, None]) & (norms > 0)
    return torch.where(real[..., None], components / norms.clamp_min(1e-300)[..., None], torch.zeros_like(components))


def _iterated(
    rows: Float[Tensor, "layer n d"], count: int, *, coarse: bool
) -> tuple[Float[Tensor, "layer m k"], Float[Tensor, "layer k"]]:
    """Leading eigenvectors of the smaller of XXᵀ and XᵀX, and the roots of their eigenvalues, from a fixed start."""
    wide, size = rows.shape[1] < rows.shape[2], min(rows.shape[1:])
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, count + SPARE, generator=generator, dtype=torch.float64).to(rows.device)
    block = torch.linalg.qr(start.expand(len(rows), *start.shape)).Q
    product = inner_products(rows, coarse=coarse) if size <= FORMED else None

    def by_product(vectors: Tensor) -> Tensor:
        assert product is not None
        return product @ vectors

    def by_rows(vectors: Tensor) -> Tensor:
        return rows @ (rows.mT @ vectors) if wide else rows.mT @ (rows @ vectors)

    if product is not None and product.dtype == torch.float64:
        block, values = _krylov(by_product, block, count, CONVERGED)
    else:
        if product is not None:
            block = torch.linalg.qr(_krylov(by_product, block.float(), count, ROUGHLY)[0].double()).Q
        block, values = _krylov(by_rows, block, count, CONVERGED)
    return block[..., :count], values[:, :count].clamp_min(0).sqrt()


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
        rows, mean = centred(sample.rows)
        return plane_through(signed(leading_components(rows, 1, coarse=sample.coarse)[:, 0], sample), mean)


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
        rows = stacked(sample.rows)
        pairs = checked_pairs(sample, self.name)
        gaps = rows[:, pairs[:, 0]] - rows[:, pairs[:, 1]]
        component = leading_components(gaps, 1, coarse=sample.coarse)[:, 0]
        return plane_through(signed(component, sample), rows.mean(dim=1))


def signed(directions: Float[Tensor, "layer d"], sample: Sample) -> Float[Tensor, "layer d"]:
    """Each direction or its opposite, so that the defecting rows lie higher on average."""
    assert sample.rows is not None
    assert sample.marks is not None
    defecting, other = class_means(sample.rows, sample.marks)
    agreement = torch.einsum("ld,ld->l", directions, defecting - other)
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
