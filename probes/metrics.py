"""How well scores separate defections from the rest, with exact ties and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ..activations.errors import DefectionError

Interval = tuple[float, float]


def _split(scores: Tensor, labels: Sequence[bool] | Tensor | NDArray[Any]) -> tuple[Tensor, Tensor]:
    marks = torch.as_tensor(np.asarray(labels), dtype=torch.bool)
    if scores.shape[-1] != len(marks):
        raise DefectionError(f"{scores.shape[-1]} scores do not fit {len(marks)} labels")
    if marks.all() or not marks.any():
        raise DefectionError(
            f"AUROC needs both outcomes, but all {len(marks)} labels are {bool(marks[0]) if len(marks) else 'missing'}"
        )
    if not scores.isfinite().all():
        raise DefectionError("a score is not finite, so it has no rank")
    values = scores.double()
    return values[..., marks], values[..., ~marks]


def auroc(
    scores: Float[Tensor, "*batch n"], labels: Sequence[bool] | Bool[Tensor, "n"] | NDArray[Any]
) -> Float[Tensor, "*batch"]:
    """Signed area under the ROC curve: the chance that a positive scores above a negative, ties counting ½.

    Equals `sklearn.metrics.roc_auc_score`; 0.1 is a failure, not a 0.9 (PITFALLS 18, 20).
    Raises DefectionError when only one class is present or a score is not finite.
    """
    positive, negative = _split(scores, labels)
    ranked = negative.sort(dim=-1).values.contiguous()
    wanted = positive.contiguous()
    below = torch.searchsorted(ranked, wanted, side="left")
    up_to = torch.searchsorted(ranked, wanted, side="right")
    return (below + up_to).double().mean(dim=-1) / (2 * negative.shape[-1])


def auroc_interval(
    scores: Float[Tensor, "*batch n"],
    labels: Sequence[bool] | NDArray[Any],
    clusters: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Percentile bootstrap interval that resamples whole clusters (topics), not prompts (PITFALLS 23).

    The same draws serve every score of the batch. A draw without both classes is dropped.
    """
    positive, negative = _split(scores, labels)
    marks = torch.as_tensor(np.asarray(labels), dtype=torch.bool)
    # Halves and small integers: fp32 holds every product and sum exactly, in half the time.
    wins = (positive[..., :, None] > negative[..., None, :]).float()
    wins += 0.5 * (positive[..., :, None] == negative[..., None, :]).float()
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = torch.from_numpy(counts[:, member]).float()
    up, down = weights[:, marks], weights[:, ~marks]
    total = up.sum(dim=1) * down.sum(dim=1)
    usable = total > 0
    areas = ((up @ wins) * down).double().sum(dim=-1)[..., usable] / total[usable].double()
    tail = (1 - level) / 2
    return areas.quantile(tail, dim=-1), areas.quantile(1 - tail, dim=-1)


def tpr_at_fpr(
    scores: Float[Tensor, "*batch n"], labels: Sequence[bool] | NDArray[Any], target: float = 0.01
) -> Float[Tensor, "*batch"]:
    """The highest true-positive rate whose false-positive rate is at most `target`: never overshot (PITFALLS 19)."""
    positive, negative = _split(scores, labels)
    allowed = int(np.floor(target * negative.shape[-1] + 1e-9))
    if allowed >= negative.shape[-1]:
        return torch.ones(scores.shape[:-1], dtype=torch.float64)
    # Flagged are scores strictly above the threshold, so that tied negatives are either all flagged or none is.
    threshold = negative.sort(dim=-1, descending=True).values[..., allowed, None]
    return (positive > threshold).double().mean(dim=-1)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def salience(scores: Float[Tensor, "*batch n"], labels: Sequence[bool] | NDArray[Any]) -> Float[Tensor, "*batch"]:
    """Between-class over within-class variance of projections (MacDiarmid et al. 2024, "salience").

    With class means m₁, m₀ and pooled within-class variance s²: ((m₁ − m₀)/2)² / s²; 0 where nothing varies.
    It does not change with the scale or the offset of the scores.
    """
    # Measured from one of them, equal scores differ by exactly 0 and not by the rounding of their mean (PITFALLS 16).
    positive, negative = _split(scores.double() - scores[..., :1].double(), labels)
    up, down = positive.mean(dim=-1, keepdim=True), negative.mean(dim=-1, keepdim=True)
    within = (positive - up).square().sum(dim=-1) + (negative - down).square().sum(dim=-1)
    within = within / (positive.shape[-1] + negative.shape[-1])
    between = ((up - down) / 2).square().squeeze(-1)
    return torch.where(between > 0, between / within, torch.zeros_like(between))
