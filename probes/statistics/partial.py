"""The interval of a partial AUROC: how sure the left end of the ROC curve is, by leaving out one topic at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from .intervals import effective_size, lower_limit
from .metrics import Labels, partial_auroc
from .ranking import class_marks


def partial_auroc_interval(
    scores: Float[Tensor, "*batch n"],
    labels: Labels,
    max_fpr: float,
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Interval of `metrics.partial_auroc`, on the same standardised scale (½ is chance, 1 perfection).

    The variance is the jackknife's over clusters (Efron and Stein 1981; over prompts without clusters), which allows
    for the threshold at `max_fpr` being an estimate too. The limits are then those of an AUROC (`delong_interval`), of
    a sample as small as the negatives that reach beyond that threshold. Simulated (normal scores, AUROCs of 0.7 to
    0.99, from 50 + 50 prompts or 10 topics up, up to a tenth or a fifth of the negatives): 93–99% of the intervals hold
    the truth, more than 97% near 1.
    Raises DefectionError for one class only, a class within one cluster, or a non-finite score.
    """
    from scipy.stats import t

    marks, scores = class_marks(labels, scores.shape[-1]), scores.cpu()
    names = np.arange(len(marks)) if clusters is None else np.asarray(clusters)
    if len(names) != len(marks):
        raise DefectionError(f"{len(names)} cluster names do not fit {len(marks)} labels")
    member = torch.from_numpy(np.unique(names, return_inverse=True)[1])
    of_class = [member[each] for each in (marks, ~marks)]
    groups = min(len(part.unique()) for part in of_class)
    if groups < 2:
        raise DefectionError("an interval needs positives of two topics and negatives of two topics at least")
    least = max_fpr / 2

    def share(rows: Tensor) -> Tensor:
        """The area under the curve as a share of the whole strip: 0 … 1."""
        standardised = partial_auroc(scores[..., rows], marks[rows], max_fpr)
        return least + (2 * standardised - 1) * (1 - least)

    everything = share(torch.ones_like(marks))
    without = torch.stack([share(member != number) for number in range(int(member.max()) + 1)])
    variance = (without - without.mean(dim=0)).square().sum(dim=0) * (len(without) - 1) / len(without)
    up, down = (effective_size(scores[..., each].double(), member[each]) for each in (marks, ~marks))
    size = torch.minimum(up, (max_fpr * down).clamp_min(1))
    quantile = float(t.isf((1 - level) / 2, groups - 1))
    limits = (
        lower_limit(everything, variance, size, quantile),
        1 - lower_limit(1 - everything, variance, size, quantile),
    )
    low, high = (0.5 * (1 + (limit - least) / (1 - least)) for limit in limits)
    return low, high
