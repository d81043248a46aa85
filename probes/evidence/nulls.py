"""What a direction, or a label, that knows nothing reaches: a band for pictures and tables, and p-values of cells.

The verdict rests on neither: its p-values are of the mean over families (`randomisation`).

Directions are drawn on the host, so that a seed means the same on every device, and multiplied where the rows lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..estimators.ragged import refuse_ragged
from ..statistics.metrics import auroc
from ..statistics.ranking import Labels, below, class_marks, refuse_unranked
from ..statistics.scale import divisor

DIRECTIONS = 1000


def random_directions(
    n_layers: int, d_model: int, *, count: int = DIRECTIONS, seed: int = 0
) -> Float[Tensor, "layer direction d_model"]:
    """Isotropic directions, drawn afresh for each layer (MacDiarmid et al. 2024, "random directions")."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_layers, count, d_model, generator=generator)


def covariance_directions(
    clean: Float[Tensor, "prompt layer d_model"], *, count: int = DIRECTIONS, seed: int = 0
) -> Float[Tensor, "layer direction d_model"]:
    """Directions drawn from N(0, Σ) with Σ the covariance of clean prompts at each layer, and not from a sphere.

    They point where ordinary prompts differ, as a probe's own direction does: a harder null than isotropic ones. A sum
    of centred prompts with Gaussian weights has that covariance exactly, so no d × d matrix is formed. They lie where
    `clean` does.
    """
    # Measured from one of them, equal prompts differ by exactly 0 and not by the rounding of their mean.
    moved = clean.double() - clean[:1].double()
    centred = (moved - moved.mean(dim=0)).float().transpose(0, 1)
    weights = torch.randn(len(centred), count, centred.shape[1], generator=torch.Generator().manual_seed(seed))
    directions: Tensor = weights.to(centred.device) @ centred / max(1, centred.shape[1] - 1) ** 0.5
    return directions


def null_scores(
    residuals: Residuals,
    clean: Residuals,
    *,
    count: int = DIRECTIONS,
    seed: int = 0,
    directions: Float[Tensor, "layer direction d_model"] | None = None,
) -> Float[Tensor, "layer direction prompt"]:
    """Scores of random directions (isotropic unless given), standardised on clean prompts just as a probe's are.

    They lie where the residuals do.
    """
    refuse_ragged(residuals, clean)
    if directions is None:
        directions = random_directions(len(residuals.layers), residuals.values.shape[-1], count=count, seed=seed)
    directions = directions.to(residuals.values.device)
    reference = torch.einsum("lkd,pld->lkp", directions, clean.values.to(directions))
    scores = torch.einsum("lkd,pld->lkp", directions, residuals.values.to(directions))
    return standardised(scores, reference)


def standardised(
    scores: Float[Tensor, "*batch prompt"], reference: Float[Tensor, "*batch clean"]
) -> Float[Tensor, "*batch prompt"]:
    """Scores less the mean of the reference's, over their standard deviation (1 where they do not vary)."""
    spread = reference.std(dim=-1, keepdim=True)
    return (scores - reference.mean(dim=-1, keepdim=True)) / divisor(spread)


def null_aurocs(
    scores: Float[Tensor, "layer direction prompt"],
    labels: Labels,
    columns: Sequence[int] | None = None,
) -> Float[Tensor, "*layer direction"]:
    """Signed AUROC of each random direction: at each layer, or with `columns`, of the mean score over those layers."""
    if columns is not None:
        return auroc(scores[list(columns)].mean(dim=0), labels, axis=-1)
    return auroc(scores, labels, axis=-1)


def null_band(aurocs: Float[Tensor, "direction"]) -> tuple[float, float]:
    """The central 95%: 2.5th and 97.5th percentile."""
    low, high = np.quantile(aurocs.cpu().numpy(), [0.025, 0.975])
    return float(low), float(high)


def shuffled_labels(
    labels: Labels, clusters: Sequence[str] | None = None, *, count: int = DIRECTIONS, seed: int = 0
) -> Bool[Tensor, "draw n"]:
    """Test labels dealt out anew; with clusters only inside a topic: what topics differ in then stays in the null.

    Raises DefectionError where no topic holds both outcomes: every draw would be the labels themselves, and every
    p-value 1.
    """
    marks = class_marks(labels, len(labels)).numpy()
    names = np.zeros(len(marks)) if clusters is None else np.asarray(clusters)
    if len(names) != len(marks):
        raise DefectionError(f"{len(names)} cluster names do not fit {len(marks)} labels")
    if not moves_labels(marks, names):
        raise DefectionError(
            "within every topic all labels are alike, so a shuffle within topics moves none; give prompts of which "
            "some topics hold both outcomes, or shuffle across topics"
        )
    drawn = np.repeat(marks[None], count, axis=0)
    rng = np.random.default_rng(seed)
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        drawn[:, members] = rng.permuted(drawn[:, members], axis=1)
    return torch.from_numpy(drawn)


def moves_labels(labels: Labels, clusters: Sequence[str] | NDArray[np.generic]) -> bool:
    """Whether a shuffle within clusters can move a label: whether one of them holds both outcomes."""
    seen = set(zip(clusters, class_marks(labels, len(labels)).tolist(), strict=True))
    return len(seen) > len({name for name, _ in seen})


def aurocs_under(scores: Float[Tensor, "layer prompt"], drawn: Bool[Tensor, "draw prompt"]) -> Tensor:
    """AUROC [layer, draw] of the same scores under each draw of labels, all with as many positives.

    One draw serves every layer, so that layers keep their correlation. Ranks are taken once; each draw is a sum of
    ranks.
    """
    values = scores.cpu().double()
    refuse_unranked(values)
    n_positive, n = int(drawn[0].sum()), drawn.shape[1]
    ranks = below(values, values) @ drawn.T.cpu().double()
    areas: Tensor = (ranks - n_positive**2 / 2) / (n_positive * (n - n_positive))
    return areas


def permuted_label_aurocs(
    scores: Float[Tensor, "layer prompt"],
    labels: Labels,
    clusters: Sequence[str] | None = None,
    *,
    count: int = DIRECTIONS,
    seed: int = 0,
) -> Float[Tensor, "layer draw"]:
    """AUROC under shuffled test labels (`shuffled_labels`): what scores reach that have nothing to do with them."""
    class_marks(labels, scores.shape[-1])
    return aurocs_under(scores, shuffled_labels(labels, clusters, count=count, seed=seed))


def p_value(observed: Float[Tensor, "*batch"] | float, null: Float[Tensor, "*batch draw"]) -> Float[Tensor, "*batch"]:
    """The share of draws at least as high, the observed one counted among them: (1 + #) / (1 + draws).

    One-sided, since AUROC is signed; never 0 (Phipson and Smyth 2010).
    """
    # Equal AUROCs computed along two roads may differ in their last bit; they count as equal.
    least = torch.as_tensor(observed, dtype=torch.float64).cpu()[..., None] - 1e-12
    return (1 + (null.cpu() >= least).sum(dim=-1)).double() / (1 + null.shape[-1])


@dataclass(frozen=True)
class BestLayer:
    """The layer with the highest AUROC, and what that height is worth when any layer could have been it."""

    column: int
    """Which column of the scores; of several, the one nearest the middle of the model."""
    auroc: float
    p_value: float
    """Share of draws whose own best layer is at least as high."""
    adjusted: Float[Tensor, "layer"]
    """The same for each layer: family-wise p-values (Westfall and Young 1993, single-step maxT)."""


def best_layer(observed: Float[Tensor, "layer"], null: Float[Tensor, "layer draw"]) -> BestLayer:
    """Test a best layer chosen *after* the labels were read: against each null draw's own best layer.

    Args:
        observed: AUROC of each layer.
        null: AUROCs [layer, draw] of draws that share one shuffle over all layers (`permuted_label_aurocs`,
            `label_shuffle_null`).

    Raises:
        DefectionError: When the two do not have the same layers.

    Examples:
        >>> null = torch.tensor([[0.5, 0.6, 0.4], [0.5, 0.5, 0.55]], dtype=torch.float64)
        >>> best_layer(torch.tensor([0.52, 0.9], dtype=torch.float64), null).p_value
        0.25
    """
    if observed.shape != null.shape[:1]:
        raise DefectionError(f"{len(observed)} layers do not fit a null of shape {tuple(null.shape)}")
    adjusted = p_value(observed, null.amax(dim=0).expand(len(observed), -1))
    ties = (observed == observed.max()).nonzero().flatten().tolist()
    column = min(ties, key=lambda i: (abs(i - len(observed) // 2), i))
    return BestLayer(column, float(observed[column]), float(adjusted[column]), adjusted)
