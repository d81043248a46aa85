"""What directions and labels that know nothing reach on one model and test set, drawn once for all its probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...activations.reading.residuals import Residuals
from ..statistics.metrics import Interval, Labels
from .nulls import (
    BestLayer,
    aurocs_under,
    best_layer,
    covariance_directions,
    moves_labels,
    null_aurocs,
    null_band,
    null_scores,
    shuffled_labels,
)
from .sweep_table import NOTHING


@dataclass(frozen=True)
class Chance:
    """Null bands by column: each layer, then the mean over the fixed layers where there are several."""

    isotropic: tuple[Interval, ...]
    """Central 95% of directions drawn from a sphere (MacDiarmid et al. 2024)."""
    covariance: tuple[Interval, ...]
    """Central 95% of directions drawn in the clean prompts' own covariance."""
    best_high: float
    """97.5th percentile of the best layer of isotropic directions, one a layer."""
    shuffles: Bool[Tensor, "draw prompt"] | None
    """Test labels dealt out anew within topics; None where no topic holds both outcomes, so that none would move."""

    def best(self, aurocs: Float[Tensor, "layer"], scores: Float[Tensor, "layer prompt"]) -> BestLayer:
        """The best of the layers, tested against the best layer of every shuffle of the labels.

        Its p-values are NaN where a shuffle would move none.
        """
        if self.shuffles is None:
            untested = torch.full((len(aurocs), 1), torch.nan, dtype=torch.float64)
            return replace(best_layer(aurocs, untested), p_value=NOTHING, adjusted=untested[:, 0])
        return best_layer(aurocs, aurocs_under(scores, self.shuffles))


def chance(
    tests: Residuals, clean: Residuals, labels: Labels, topics: Sequence[str], fixed_columns: Sequence[int]
) -> Chance:
    """Draw both kinds of random directions, and shuffles of the labels, for the test prompts of one set."""
    isotropic = null_scores(tests, clean)
    aurocs = null_aurocs(isotropic, labels)
    bands = [_bands(isotropic, aurocs, labels, fixed_columns)]
    del isotropic  # before the next ones are there: each is a score for every direction, layer and prompt
    drawn = null_scores(tests, clean, directions=covariance_directions(clean.values))
    bands.append(_bands(drawn, null_aurocs(drawn, labels), labels, fixed_columns))
    best_high = null_band(aurocs.amax(dim=0))[1]
    shuffles = shuffled_labels(labels, topics) if moves_labels(labels, topics) else None
    return Chance(bands[0], bands[1], best_high, shuffles)


def _bands(
    scores: Float[Tensor, "layer direction prompt"],
    aurocs: Float[Tensor, "layer direction"],
    labels: Labels,
    fixed_columns: Sequence[int],
) -> tuple[Interval, ...]:
    bands = [null_band(areas) for areas in aurocs]
    if len(fixed_columns) > 1:
        bands.append(null_band(null_aurocs(scores, labels, fixed_columns)))
    return tuple(bands)
