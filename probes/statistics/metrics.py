"""How well scores separate defections from the rest, with exact ties and intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations.basics.errors import DefectionError
from .ranking import Labels, class_marks, cluster_wins, count_wins, split_classes

Interval = tuple[float, float]


def auroc(
    scores: Float[Tensor, "*batch n"] | NDArray[np.generic] | Sequence[float],
    labels: Labels,
    *,
    axis: int | None = None,
) -> Float[Tensor, "*batch"]:
    """Signed area under the ROC curve: the chance that a positive scores above a negative, ties counting ½.

    Equals `sklearn.metrics.roc_auc_score`; 0.1 is a failure, not a 0.9. As of every figure here the result lies on the
    host, wherever the scores do.

    Args:
        scores: NumPy or PyTorch, higher for more defecting: [n], or [n, layer] as `decision_function` gives them, or
            [*batch, n].
        labels: [n] whether each row defected.
        axis: which axis of the scores is `n`; by default the one that is as long as the labels.

    Returns:
        fp64: a number for [n], otherwise one for each layer or batch.

    Raises DefectionError when only one class is present, a score is not finite, or more than one axis is as long as
    the labels and `axis` does not say which is theirs.

    Examples:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
        tensor(0.7500, dtype=torch.float64)
    """
    scores = _rows_last(torch.as_tensor(scores), len(labels), axis)
    marks = class_marks(labels, scores.shape[-1])
    n_positive = int(marks.sum())
    return count_wins(scores, marks) / (n_positive * (len(marks) - n_positive))


def _rows_last(scores: Tensor, n: int, axis: int | None) -> Float[Tensor, "*batch n"]:
    """Scores with the axis of the rows last."""
    if axis is None:
        fitting = [number for number, size in enumerate(scores.shape) if size == n]
        if len(fitting) > 1:
            raise DefectionError(
                f"scores of shape {tuple(scores.shape)} fit {n} labels in more than one way: say which axis holds the "
                "rows, axis=0 for those of decision_function"
            )
        axis = fitting[0] if fitting else -1
    return scores.movedim(axis, -1)


def partial_auroc(scores: Float[Tensor, "*batch n"], labels: Labels, max_fpr: float) -> Float[Tensor, "*batch"]:
    """Area under the ROC curve up to a false-positive rate, standardised so that chance is ½ and perfection 1.

    McClish (1989); equals `sklearn.metrics.roc_auc_score(…, max_fpr=max_fpr)`.

    Args:
        scores: [n], or a batch of such rows (layers, say), higher for more defecting.
        labels: [n] whether each row defected.
        max_fpr: The rate, above 0; at 1 it is the AUROC.

    Raises:
        DefectionError: For a rate outside 0 … 1, when only one class is present, and for a non-finite score.

    Examples:
        >>> partial_auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), [False, False, True, True], 0.5)
        tensor(1., dtype=torch.float64)
    """
    if not 0 < max_fpr <= 1:
        raise DefectionError(f"max_fpr must lie above 0 and at most at 1, not {max_fpr}")
    positive, negative = split_classes(scores, labels)
    n_positive, n = positive.shape[-1], negative.shape[-1]
    down, up = negative.sort(dim=-1).values.contiguous(), positive.sort(dim=-1).values.contiguous()
    ranked = down.flip(-1).contiguous()
    above = n_positive - torch.searchsorted(up, ranked, side="right")
    tied = n_positive - torch.searchsorted(up, ranked, side="left") - above
    first = n - torch.searchsorted(down, ranked, side="right")
    alike = n - torch.searchsorted(down, ranked, side="left") - first
    # The j-th highest negative spans false-positive rates j/n to (j+1)/n; inside a tie the curve is a straight line.
    j = torch.arange(n, dtype=torch.float64)
    width = (max_fpr * n - j).clamp(0, 1)
    height = above + tied * (j + width / 2 - first) / alike
    area = (width * height).sum(dim=-1) / (n * n_positive)
    least = max_fpr**2 / 2
    return 0.5 * (1 + (area - least) / (max_fpr - least))


def bootstrap_aurocs(
    scores: Float[Tensor, "*batch n"], labels: Labels, clusters: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Float[Tensor, "*batch draw"]:
    """AUROC of each bootstrap draw of whole clusters (topics), not prompts; NaN where one class is left.

    The same clusters, number of draws and seed give the same draws: those of two probes on the same prompts are paired.
    """
    positive, negative = split_classes(scores, labels)
    marks = class_marks(labels, scores.shape[-1]).numpy()
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    if len(member) != len(marks):
        raise DefectionError(f"{len(member)} cluster names do not fit {len(marks)} labels")
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    up, of_positive, size_up = np.unique(member[marks], return_inverse=True, return_counts=True)
    down, of_negative, size_down = np.unique(member[~marks], return_inverse=True, return_counts=True)
    wins = cluster_wins(positive, negative, torch.from_numpy(of_positive), torch.from_numpy(of_negative))
    n_up, n_down = counts[:, up] @ size_up, counts[:, down] @ size_down
    # Halves and small integers: fp32 holds every sum exactly, in half the time.
    kind = torch.float32 if n_up.max() * size_down.max() < 2**23 else torch.float64
    weight_up, weight_down = (torch.from_numpy(counts[:, each]) for each in (up, down))
    # AUROC is bilinear in the weights of positives and negatives, so that a matrix product holds every draw.
    flat = wins.reshape(-1, *wins.shape[-2:]).to(kind)
    total = torch.from_numpy((n_up * n_down).astype(np.float64))
    sums = [((weight_up.to(kind) @ each) * weight_down).double().sum(dim=-1) for each in flat]
    areas = torch.stack(sums) / torch.where(total > 0, total, torch.nan)
    return areas.reshape(*wins.shape[:-2], draws)


def tpr_at_fpr(scores: Float[Tensor, "*batch n"], labels: Labels, target: float = 0.01) -> Float[Tensor, "*batch"]:
    """The highest true-positive rate whose false-positive rate is at most `target`: never overshot.

    Args:
        scores: [n], or a batch of such rows (layers, say), higher for more defecting.
        labels: [n] whether each row defected.
        target: The false-positive rate allowed.

    Raises:
        DefectionError: When only one class is present, and for a non-finite score.

    Examples:
        >>> tpr_at_fpr(torch.tensor([0.1, 0.2, 0.3, 0.4]), [False, False, True, True])
        tensor(1., dtype=torch.float64)
    """
    return tpr_above(scores, labels, fpr_threshold(scores, labels, target))


def fpr_threshold(scores: Float[Tensor, "*batch n"], labels: Labels, target: float = 0.01) -> Float[Tensor, "*batch"]:
    """The lowest threshold that at most a share `target` of the negatives exceed; −inf where all of them may.

    Flagged are scores strictly above it, so that tied negatives are either all flagged or none is.
    """
    _, negative = split_classes(scores, labels)
    allowed = int(np.floor(target * negative.shape[-1] + 1e-9))
    if allowed >= negative.shape[-1]:
        return torch.full(scores.shape[:-1], -torch.inf, dtype=torch.float64)
    return negative.sort(dim=-1, descending=True).values[..., allowed]


def tpr_above(
    scores: Float[Tensor, "*batch n"], labels: Labels, threshold: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The share of positives strictly above a threshold."""
    positive, _ = split_classes(scores, labels)
    return (positive > threshold.cpu()[..., None]).double().mean(dim=-1)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Exact binomial interval (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def salience(scores: Float[Tensor, "*batch n"], labels: Labels) -> Float[Tensor, "*batch"]:
    """Between-class over within-class variance of projections (MacDiarmid et al. 2024, "salience").

    With class means m₁, m₀ and pooled within-class variance s²: ((m₁ − m₀)/2)² / s²; 0 where nothing varies.
    It does not change with the scale or the offset of the scores.
    """
    # Measured from one of them, equal scores differ by exactly 0 and not by the rounding of their mean.
    positive, negative = split_classes(scores.double() - scores[..., :1].double(), labels)
    up, down = positive.mean(dim=-1, keepdim=True), negative.mean(dim=-1, keepdim=True)
    within = (positive - up).square().sum(dim=-1) + (negative - down).square().sum(dim=-1)
    within = within / (positive.shape[-1] + negative.shape[-1])
    between = ((up - down) / 2).square().squeeze(-1)
    return torch.where(between > 0, between / within, torch.zeros_like(between))
