"""A minority in unlabelled traffic that clean prompts do not have: found, told from nothing, and made a probe.

A monitor has traffic, some of it perhaps triggered, and nobody knows which. Where an organism defects, its late layers
hold one direction on which a few prompts lie far from all others. Relative to what clean prompts vary by (a generalised
eigenproblem) that direction comes first even at a few per cent, where it is only the sixth or tenth principal
component; and a minority, unlike a gradual shift of topic or style, splits the traffic in two. A kind of prompt that
clean prompts lack does so too: they have to be as diverse as the traffic, and what the minority is, its prompts tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Self

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from ...activations import DefectionError, Residuals
from ...activations.basics.files import Json
from ...activations.basics.shown import shortened
from ..statistics.scale import divisor
from .guard import Evidence
from .linear import LinearProbe
from .sample import Labelled, Sample, stacked

SMALLEST_MINORITY = 3
"""Fewer prompts are outliers, of which ordinary traffic always has some."""
CANDIDATES = 5
"""Leading generalised directions among which the one that splits the traffic best is taken."""
AT_ONCE = 2**20
"""Numbers of the draws that are solved together: a few megabytes."""
DEAD = 1e-12
"""Components with a smaller share of the whole variance are rounding."""


@dataclass(frozen=True)
class TrafficVerdict:
    """What the traffic was found to hold.

    Examples:
        >>> fit = UnlabelledTraffic(draws=9).fit(X, y, clean=clean, traffic=clean)
        >>> fit.verdict_.p_value >= 0.1
        True
    """

    found: bool
    """Whether it splits more than clean prompts do by chance (`p_value` at most the estimator's level)."""
    p_value: float
    """Share of random draws from the clean prompts, this traffic counted among them, that split as much. A draw is
    held against the rest of the clean prompts and is as large as the traffic, or half of them where the traffic is
    larger: p is then too large rather than too small. Its least value is 1 / (`draws` + 1); without draws it is 1.
    """
    split: float
    """Variance of the traffic's scores over what is left within its two groups: 2.75 for a normal distribution, 4 for a
    uniform one, more for two clusters."""
    minority: float
    """Share of the traffic in the group that lies away from the clean prompts."""
    component: int
    """Which generalised direction was taken; 1 is the one of largest variance relative to clean prompts."""
    variance_ratio: float
    """Its variance in traffic over that in clean prompts (shrunk)."""
    agreement: float
    """Correlation over the traffic of the scores with those of the questions' mean difference, both over the band."""

    __repr__ = shortened

    def to_json(self) -> Json:
        """As a probe file records it."""
        return asdict(self)


@dataclass(frozen=True)
class Minority:
    """The direction, within the leading components, on which the traffic splits best; its minority lies up."""

    weights: Float[Tensor, "component"]
    split: float
    share: float
    rank: int
    variance_ratio: float


class UnlabelledTraffic(LinearProbe):
    """One direction over a band of layers, on which a minority of the traffic lies away from clean prompts.

    Residuals of the band are centred on clean prompts, scaled to equal spread a layer and concatenated; within the
    `components` leading principal components of clean prompts and traffic together, directions of largest traffic
    variance relative to (shrunk) clean variance are candidates, and the one that splits the traffic best is taken.
    Questions have no part in it; how far they agree is in `verdict_`, and so is whether there is anything at all:
    the same done on `draws` random parts of the clean prompts, as large as the traffic, says how much chance splits
    (few prompts split more than many). That is a test of the traffic as a sample of the clean prompts' own kinds: a
    topic that they lack is a find, and a kind too rare to be among them may be one.

    `band` is in fractions of the depth. All layers are solved jointly: `coef_` is zero outside the band. `minority_`
    holds the rows of the traffic that lie away.

    Examples:
        >>> fit = UnlabelledTraffic(draws=9).fit(X, y, clean=clean, traffic=clean)
        >>> fit.coef_.shape
        (3, 8)
    """

    name = "unlabelled-traffic"
    sees = needs = frozenset({Evidence.CONTRAST, Evidence.CLEAN, Evidence.TRAFFIC})
    """Contrast texts only to report agreement."""

    def __init__(
        self,
        band: tuple[float, float] = (0.4, 1.0),
        components: int = 20,
        shrinkage: float = 0.1,
        level: float = 0.01,
        draws: int = 199,
        seed: int = 0,
    ) -> None:
        self.band = band
        self.components = components
        self.shrinkage = shrinkage
        self.level = level
        self.draws = draws
        self.seed = seed

    def columns(self, n_layers: int) -> range:
        """The layers of the band, as columns of rows of so many layers.

        Args:
            n_layers: How many the rows have.

        Raises:
            DefectionError: Where the band holds none of them.
        """
        start, end = (round(share * n_layers) for share in self.band)
        if not 0 <= start < n_layers or end > n_layers or (end <= start and n_layers > 1):
            raise DefectionError(f"band {self.band!r} holds no layer of {n_layers}: give fractions such as (0.4, 1.0)")
        return range(min(start, n_layers - 1), max(end, start + 1))

    def _fit(self, sample: Sample) -> None:
        ordinary, met = sample.clean_for(self.name), sample.traffic_for(self.name)
        for what, rows, least in (
            ("clean prompts", ordinary, 4 * SMALLEST_MINORITY),
            ("prompts of traffic", met, 2 * SMALLEST_MINORITY),
        ):
            if len(rows) < least:
                raise DefectionError(f"{len(rows)} {what} are too few to find a minority in; give at least {least}")
        band = self.columns(sample.n_layers)
        clean, traffic = (stacked(rows[:, band.start : band.stop]) for rows in (ordinary, met))
        centre = clean.mean(dim=1)
        spread = (clean - centre[:, None]).square().mean(dim=(1, 2)).sqrt()
        scale = divisor(spread)
        known, seen = (((rows - centre[:, None]) / scale[:, None, None]).transpose(0, 1) for rows in (clean, traffic))
        if not spread.any() and seen.any():
            raise DefectionError(
                "the clean prompts' activations do not differ: they cannot say what chance would split"
            )
        pool = torch.cat([known, seen]).flatten(1)
        pool = pool - pool.mean(dim=0)
        products = pool @ pool.T
        basis = self._basis(products)
        found = self._minority(products @ basis, len(known))
        joint = (pool.T @ (basis @ found.weights)).view(len(band), -1)
        coef = pool.new_zeros(sample.n_layers, pool.shape[1] // len(band))
        coef[band.start : band.stop] = joint / scale[:, None]
        self.coef_ = coef[0] if self.n_layers_ is None else coef
        offsets = torch.zeros_like(coef[:, 0])
        offsets[band.start : band.stop] = (centre * coef[band.start : band.stop]).sum(dim=1)
        self.intercept_ = -offsets[0] if self.n_layers_ is None else -offsets
        ranked = (products[len(known) :] @ (basis @ found.weights)).argsort(descending=True)
        self.minority_ = tuple(sorted(ranked[: round(found.share * len(ranked))].tolist()))
        p_value = self._chance(products[: len(known), : len(known)], found.split, len(seen))
        self.verdict_ = TrafficVerdict(
            found=p_value <= self.level,
            p_value=p_value,
            split=found.split,
            minority=found.share,
            component=found.rank,
            variance_ratio=found.variance_ratio,
            agreement=_agreement(sample.labelled_for(self.name), ordinary, met, coef, band),
        )

    def _like(self) -> Self:
        other = super()._like()
        other.draws = 0  # of those that say how far chance would go: one verdict is enough
        return other

    def _basis(self, products: Float[Tensor, "n n"]) -> Float[Tensor, "n component"]:
        """Row weights whose sums are the leading principal components of centred rows, as unit vectors."""
        if self.components < 1:
            raise DefectionError(f"a minority is looked for in 1 component or more, not in {self.components}")
        eigenvalues, vectors = torch.linalg.eigh(products)
        kept = eigenvalues > DEAD * eigenvalues.clamp_min(0).sum()
        kept[: -self.components] = False
        basis: Tensor = vectors[:, kept] / eigenvalues[kept].sqrt()
        return basis

    def _minority(self, rows: Float[Tensor, "n component"], n_clean: int) -> Minority:
        """The best of the leading generalised directions; the first `n_clean` rows are the clean prompts."""
        clean, traffic = rows[:n_clean], rows[n_clean:]
        if rows.shape[1] == 0:
            return Minority(rows.new_zeros(0), 1.0, 0.0, 1, 1.0)
        leading, ratios = self._leading(clean, traffic)
        splits, shares, signs = best_splits(traffic @ leading, clean.mean(dim=0) @ leading)
        best = int(splits.argmax())
        return Minority(
            weights=leading[:, best] * signs[best],
            split=float(splits[best]),
            share=float(shares[best]),
            rank=best + 1,
            variance_ratio=float(ratios[best]),
        )

    def _leading(
        self, clean: Float[Tensor, "*draw n component"], traffic: Float[Tensor, "*draw m component"]
    ) -> tuple[Float[Tensor, "*draw component candidate"], Float[Tensor, "*draw candidate"]]:
        """Directions of largest traffic variance relative to (shrunk) clean variance, and that ratio, largest first."""
        ordinary, met = (_covariance(part) for part in (clean, traffic))
        k = clean.shape[-1]
        mean, mean_met = (each.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None] / k for each in (ordinary, met))
        ridge = (self.shrinkage * mean).clamp_min(1e-9 * mean_met + 1e-300)
        factor = torch.linalg.cholesky(ordinary + ridge * torch.eye(k, dtype=clean.dtype, device=clean.device))
        halved = torch.linalg.solve_triangular(factor, met, upper=False)
        ratios, turned = torch.linalg.eigh(torch.linalg.solve_triangular(factor, halved.mT, upper=False))
        leading = torch.linalg.solve_triangular(factor.mT, turned[..., -CANDIDATES:].flip(-1), upper=True)
        return leading, ratios[..., -CANDIDATES:].flip(-1)

    def _chance(self, products: Float[Tensor, "n n"], split: float, n_traffic: int) -> float:
        """How often some of the clean prompts, as many as the traffic has, split at least as much as it did."""
        n = len(products)
        products = products - products.mean(dim=0) - products.mean(dim=1, keepdim=True) + products.mean()
        rows = products @ self._basis(products)
        if rows.shape[1] == 0:
            return 1.0
        taken = min(n_traffic, n - n // 2)  # a reference of fewer than half splits what is taken by its own noise
        # Traffic larger than that may reach farther into the tails: one prompt taken stands for several of its.
        smallest = math.ceil(SMALLEST_MINORITY * taken / n_traffic)
        generator = torch.Generator().manual_seed(self.seed)
        orders = (torch.randperm(n, generator=generator).to(rows.device) for _ in range(self.draws))
        as_much = 0
        while some := list(islice(orders, max(1, AT_ONCE // rows.numel()))):
            drawn = rows[torch.stack(some)]
            clean, traffic = drawn[:, : n - taken], drawn[:, n - taken :]
            scores = (traffic @ self._leading(clean, traffic)[0]).transpose(0, 1)
            columns = scores.flatten(1)
            splits = best_splits(columns, columns.new_zeros(columns.shape[1]), smallest)[0].view(scores.shape[1:])
            as_much += int((splits.amax(dim=1) >= split).sum())
        return (1 + as_much) / (self.draws + 1)

    def _fit_residuals(
        self,
        contrast: Residuals,
        y: ArrayLike | None,
        clean: Residuals | None,
        traffic: Residuals | None,
        forbidden: Sequence[str],
        fixed_layers: Sequence[int] | None,
    ) -> Self:
        if fixed_layers is None:
            fixed_layers = [contrast.layers[column] for column in self.columns(len(contrast.layers))]
        super()._fit_residuals(contrast, y, clean, traffic, forbidden, fixed_layers)
        assert traffic is not None  # or it was refused
        marks = [prompt.extra.get("triggered") for prompt in traffic.prompts]
        known = all(isinstance(mark, bool) for mark in marks)
        about = {
            "traffic": {"prompts": len(marks), "triggered_share": marks.count(True) / len(marks) if known else None},
            "verdict": self.verdict_.to_json(),
        }
        self.probe_ = replace(self.probe_, parameters={**self.probe_.parameters, **about})
        return self


def _covariance(rows: Float[Tensor, "*draw n k"]) -> Float[Tensor, "*draw k k"]:
    """`torch.cov` of columns, for many draws at once."""
    centred = rows - rows.mean(dim=-2, keepdim=True)
    return centred.mT @ centred / (rows.shape[-2] - 1)


def best_splits(
    scores: Float[Tensor, "n k"], clean: Float[Tensor, "k"], smallest: int = SMALLEST_MINORITY
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"], Float[Tensor, "k"]]:
    """For each column, the cut into two groups that leaves least variance within them (Otsu 1979; 2-means on a line).

    Gives total over remaining variance; the share of the group that lies farther from the clean mean; and 1 where that
    group is the upper one, −1 where it is the lower. No group has fewer than `smallest` rows.
    """
    n = len(scores)
    ranked = scores.sort(dim=0).values - scores.mean(dim=0)
    total = ranked.square().sum(dim=0)
    lower = torch.arange(1, n, dtype=scores.dtype, device=scores.device)[:, None]
    sums = ranked.cumsum(dim=0)[:-1]
    between = sums.square() * (1 / lower + 1 / (n - lower))  # the scores add up to nothing
    between[: smallest - 1] = between[n - smallest :] = -1
    gained, cut = between.max(dim=0)
    splits = torch.where(total > 0, total / (total - gained).clamp_min(1e-12 * total).clamp_min(1e-300), 1.0)
    count = cut + 1
    low = sums.gather(0, cut[None])[0] / count
    high = -sums.gather(0, cut[None])[0] / (n - count)
    reference = clean - scores.mean(dim=0)
    up = (high - reference).abs() >= (low - reference).abs()
    shares = torch.where(up, n - count, count).to(scores.dtype) / n
    return splits, shares, torch.where(up, 1.0, -1.0).to(scores.dtype)


def _agreement(texts: Labelled, clean: Tensor, traffic: Tensor, coef: Float[Tensor, "layer d"], band: range) -> float:
    """Correlation of two band scores over the traffic: this direction's and the contrast texts' mean difference's."""
    defecting, other, _ = texts.means
    scores = []
    for direction in (coef, defecting - other):
        known, seen = (
            torch.stack([rows[:, layer].double() @ direction[layer] for layer in band], dim=1)
            for rows in (clean, traffic)
        )
        spread = known.std(dim=0)
        scores.append((seen / divisor(spread)).mean(dim=1))
    correlation = torch.corrcoef(torch.stack(scores))[0, 1]
    return float(correlation.nan_to_num(0.0))
