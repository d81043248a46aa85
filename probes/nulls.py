"""What a direction that knows nothing reaches: the band a probe must clear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..activations.capture import Residuals
from .metrics import auroc

DIRECTIONS = 1000


def random_directions(
    n_layers: int, d_model: int, *, count: int = DIRECTIONS, seed: int = 0
) -> Float[Tensor, "layer direction d_model"]:
    """Isotropic directions, drawn afresh for each layer (MacDiarmid et al. 2024, "random directions")."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_layers, count, d_model, generator=generator)


def null_scores(
    residuals: Residuals, clean: Residuals, *, count: int = DIRECTIONS, seed: int = 0
) -> Float[Tensor, "layer direction prompt"]:
    """Scores of random directions, standardised on clean prompts just as a probe's are."""
    directions = random_directions(len(residuals.layers), residuals.values.shape[-1], count=count, seed=seed)
    reference = torch.einsum("lkd,pld->lkp", directions, clean.values)
    scores = torch.einsum("lkd,pld->lkp", directions, residuals.values)
    spread = reference.std(dim=-1, keepdim=True)
    return (scores - reference.mean(dim=-1, keepdim=True)) / torch.where(spread > 0, spread, torch.ones_like(spread))


def null_aurocs(
    scores: Float[Tensor, "layer direction prompt"],
    labels: Sequence[bool] | NDArray[Any],
    columns: Sequence[int] | None = None,
) -> Float[Tensor, "*layer direction"]:
    """Signed AUROC of each random direction: at each layer, or with `columns`, of the mean score over those layers."""
    if columns is not None:
        return auroc(scores[list(columns)].mean(dim=0), labels)
    return auroc(scores, labels)


def null_band(aurocs: Float[Tensor, "direction"]) -> tuple[float, float]:
    """The central 95%: 2.5th and 97.5th percentile."""
    low, high = np.quantile(aurocs.numpy(), [0.025, 0.975])
    return float(low), float(high)
