"""Whitened mean difference: linear discriminant analysis, its covariance from clean prompts or pooled."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from .guard import CONTRAST_OR_LABELS, Evidence
from .linear import Hyperplane
from .mean_difference import OfDifference, plane_through
from .sample import Labelled, centred
from .solving.covariance import divide_by_covariance, shrinkage_of
from .solving.products import inner_products, squared_norm

COVARIANCES = ("clean", "pooled")


class Whitened(OfDifference):
    """Direction Σ⁻¹(μ₁ − μ₀): dimensions in which ordinary prompts vary much count less.

    `shrinkage`: share of the identity in Σ, 0 … 1, or the rule that sets it layer by layer without labels,
    "ledoit-wolf" or "oas". `covariance`: "clean" takes Σ from clean prompts; "pooled" from the rows within their
    classes, which is `sklearn.discriminant_analysis.LinearDiscriminantAnalysis` (each class shrunk by itself, then
    weighted by its share; the intercept holds the log odds of the classes).

    Examples:
        >>> Whitened().fit(X, y, clean=clean).decision_function(X).shape
        (40, 3)
    """

    name = "whitened"

    def __init__(self, shrinkage: float | str = "ledoit-wolf", covariance: str = "clean") -> None:
        self.shrinkage = shrinkage
        self.covariance = covariance

    @property
    def sees(self) -> frozenset[Evidence]:
        """Clean prompts too, when the covariance comes from them."""
        return CONTRAST_OR_LABELS | ({Evidence.CLEAN} if self.covariance == "clean" else frozenset())

    @property
    def needs(self) -> frozenset[Evidence]:
        """Contrast texts, and clean prompts when the covariance comes from them."""
        return self.sees - {Evidence.LABELLED}

    def _mapped(self, sample: Labelled, differences: Float[Tensor, "layer k d"]) -> Float[Tensor, "layer k d"]:
        return self._divided([(sample.clean_for(self.name), 1.0)], differences, coarse=sample.coarse)

    def _divided(
        self, parts: list[tuple[Tensor, float]], differences: Float[Tensor, "layer k d"], *, coarse: bool
    ) -> Float[Tensor, "layer k d"]:
        rows, ridge, product = shrunk(parts, self.shrinkage, coarse=coarse)
        return divide_by_covariance(rows, ridge, differences.mT, product, coarse=coarse).mT

    def _solve(self, sample: Labelled) -> Hyperplane:
        if self.covariance not in COVARIANCES:
            raise DefectionError(f"unknown covariance {self.covariance!r}: choose {' or '.join(COVARIANCES)}")
        if self.covariance == "clean":
            return super()._solve(sample)
        defecting, other, _ = sample.means
        share = float(sample.marks.double().mean())
        parts = [(sample.rows[sample.marks], share), (sample.rows[~sample.marks], 1 - share)]
        coef = self._divided(parts, (defecting - other)[:, None], coarse=sample.coarse)[:, 0]
        plane = plane_through(coef, (defecting + other) / 2)
        return Hyperplane(coef, plane.intercept + math.log(share / (1 - share)))

    def question_directions(
        self, sample: Labelled, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """None with a pooled covariance: there the labels say what lies within a class."""
        return super().question_directions(sample, effects) if self.covariance == "clean" else None


def shrunk(
    parts: list[tuple[Float[Tensor, "n layer d"], float]], shrinkage: float | str, *, coarse: bool = False
) -> tuple[Float[Tensor, "layer n d"], Float[Tensor, "layer"], Float[Tensor, "layer m m"] | None]:
    """Rows A and a ridge r such that AᵀA + r·I is the weighted sum of the parts' shrunk covariances.

    The inner products of A come along where the shrinkage has asked for them already: those of a single part, and
    d × d ones, which add up.
    """
    scaled, products, ridge = [], [], torch.zeros((), dtype=torch.float64)
    for values, weight in parts:
        # Of fewer rows than dimensions the products are singular along their mean, which fp32 does not quite remove.
        rows, _ = centred(values, coarse=coarse and values.shape[0] >= values.shape[2])
        product = inner_products(rows, coarse=coarse) if isinstance(shrinkage, str) else None
        share = shrinkage_of(rows, shrinkage, product)
        n, d = rows.shape[1:]
        ridge = ridge.to(rows.device) + weight * share * squared_norm(rows) / (n * d)
        factor = weight * (1 - share) / n
        rows *= factor.sqrt()[:, None, None].to(rows)
        if product is not None and (len(parts) == 1 or n >= d):
            products.append(product * factor[:, None, None].to(product))
        scaled.append(rows)
    whole = sum(products[1:], products[0]) if len(products) == len(parts) else None
    return torch.cat(scaled, dim=1) if len(parts) > 1 else scaled[0], ridge, whole
