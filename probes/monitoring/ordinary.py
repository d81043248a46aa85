"""What a probe's scores are in clean replies, place by place: what a score elsewhere than at the prompt's end means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ..statistics.scale import divisor

PLACES = 8
"""So many first places have figures of their own; there templates and openings differ from text. The rest share."""
LEAST = 20
"""Fewer replies than these do not say what is ordinary at a place."""


@dataclass(frozen=True)
class Ordinary:
    """Mean and spread of clean scores: the prompt's last token, the first tokens of the reply, and all later ones."""

    offsets: Float[Tensor, "place"]
    scales: Float[Tensor, "place"]

    def standardised(self, scores: Float[Tensor, "row"], place: int) -> Float[Tensor, "row"]:
        """Scores of the tokens at one place of each row."""
        number = min(place, len(self.offsets) - 1)
        return (scores - float(self.offsets[number])) / float(self.scales[number])

    def all_standardised(self, scores: Float[Tensor, "row token"]) -> Float[Tensor, "row token"]:
        """Scores of whole replies."""
        places = torch.arange(scores.shape[1]).clamp_max(len(self.offsets) - 1)
        return (scores - self.offsets[places]) / self.scales[places]


def ordinary(rows: Sequence[Float[Tensor, "token"]]) -> Ordinary:
    """Measure clean generations; DefectionError for fewer than twenty, or a score that is not finite."""
    if len(rows) < LEAST:
        raise DefectionError(f"{len(rows)} clean generations do not say what is ordinary: that takes {LEAST}")
    if not all(row.isfinite().all() for row in rows):
        raise DefectionError("a clean generation's score is not finite: the model overflows in this dtype; use fp32")
    groups = [
        torch.stack([row[place] for row in rows if len(row) > place] or [torch.zeros(())]) for place in range(PLACES)
    ]
    later = torch.cat([row[1:] for row in rows])
    groups.append(torch.cat([row[PLACES:] for row in rows]))
    for place, group in enumerate(groups):
        if len(group) < LEAST:  # all later tokens say more than a few at the place; without any the prompt's end does
            groups[place] = later if len(later) >= LEAST else groups[0]
    scales = torch.stack([group.std() for group in groups])
    return Ordinary(torch.stack([group.mean() for group in groups]), divisor(scales))
