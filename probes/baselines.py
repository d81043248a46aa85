"""Scores that need no question: what a probe must beat, and what nothing unlabelled can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..activations.capture import Residuals
from .metrics import auroc


def length_scores(residuals: Residuals) -> Float[Tensor, "prompt"]:
    """The prompt's length in tokens, nothing else (PITFALLS 24)."""
    return torch.tensor(residuals.n_tokens, dtype=torch.float64)


def norm_scores(residuals: Residuals) -> Float[Tensor, "prompt layer"]:
    """The length of the residual vector at each layer (PITFALLS 14)."""
    norms: Tensor = torch.linalg.vector_norm(residuals.values.double(), dim=-1)
    return norms


def first_component_scores(
    residuals: Residuals, labels: Sequence[bool] | NDArray[Any]
) -> Float[Tensor, "prompt layer"]:
    """Projection on the first principal component of the scored prompts themselves, its sign set by their labels.

    An upper bound, not a probe: it has seen triggered prompts and labels (MacDiarmid et al. 2024: PC1 is the trigger).
    """
    values = residuals.values.double()
    columns = []
    for i in range(values.shape[1]):
        centred = values[:, i] - values[:, i].mean(dim=0)
        # With fewer prompts than dimensions the small Gram matrix gives the same component.
        gram = centred @ centred.T
        variances, components = torch.linalg.eigh(gram)
        score = components[:, -1] * variances[-1].clamp_min(0).sqrt()  # 0 where nothing varies (PITFALLS 16)
        columns.append(score if float(auroc(score, labels)) >= 0.5 else -score)
    return torch.stack(columns, dim=1)


def two_components(residuals: Residuals, layer: int) -> Float[Tensor, "prompt 2"]:
    """Coordinates on the first two principal components of one layer, for a picture."""
    values = residuals.at(layer).double()
    left, singular, _ = torch.linalg.svd(values - values.mean(dim=0), full_matrices=False)
    coordinates: Tensor = left[:, :2] * singular[:2]
    return coordinates
