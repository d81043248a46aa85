"""Whitened mean difference: linear discriminant analysis whose covariance comes from clean prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from ..activations.capture import Residuals
from ..activations.errors import DefectionError
from .fitting import check_fit, make_probe, mean_difference
from .probe import Probe


@dataclass(frozen=True)
class Whitened:
    """Direction Σ⁻¹(μ₁ − μ₀): dimensions in which ordinary prompts vary much count less.

    Σ is the covariance of clean prompts, shrunk towards a multiple of the identity.
    """

    shrinkage: float | None = None
    """Share of the identity, 0 … 1. None: Ledoit and Wolf 2004's optimum, layer by layer, which needs no labels."""

    name = "whitened"

    def fit(
        self,
        contrast: Residuals,
        clean: Residuals | None = None,
        *,
        forbidden: Sequence[str] = (),
        fixed_layers: Sequence[int] | None = None,
    ) -> Probe:
        """Fit at every captured layer; needs clean prompts. Raises DefectionError without them, or on a leak."""
        if clean is None:
            raise DefectionError("a whitened probe needs clean prompts for its covariance; pass clean=… (--clean)")
        check_fit(contrast, clean, forbidden)
        difference = mean_difference(contrast)
        directions = torch.stack(
            [
                whiten(shrunk_covariance(clean.values[:, i], self.shrinkage), difference[i])
                for i in range(len(contrast.layers))
            ]
        )
        return make_probe(directions, contrast, clean, self.name, asdict(self), fixed_layers)


def shrunk_covariance(
    values: Float[Tensor, "prompt d_model"], shrinkage: float | None
) -> Float[Tensor, "d_model d_model"]:
    """(1 − s) S + s · (tr S / d) · I in fp64, with S the sample covariance."""
    centred = (values.double() - values.double().mean(dim=0)).numpy()
    if shrinkage is None:
        return torch.from_numpy(np.asarray(ledoit_wolf(centred, assume_centered=True)[0]))
    sample = torch.from_numpy(centred.T @ centred / len(centred))
    identity = torch.eye(len(sample), dtype=torch.float64)
    return (1 - shrinkage) * sample + shrinkage * sample.diagonal().mean() * identity


def whiten(
    covariance: Float[Tensor, "d_model d_model"], difference: Float[Tensor, "d_model"]
) -> Float[Tensor, "d_model"]:
    """Σ⁻¹ d; d itself where the clean prompts do not vary at all (PITFALLS 16: the embedding of one same token)."""
    spread = covariance.diagonal().mean()
    if spread <= 0:
        return difference
    # A relative ridge far below any real variance keeps an unshrunk, rank-deficient covariance solvable.
    ridge = 1e-10 * spread * torch.eye(len(covariance), dtype=torch.float64)
    direction: Tensor = torch.linalg.solve(covariance + ridge, difference)
    return direction
