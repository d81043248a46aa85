"""The probe of MacDiarmid et al. 2024, the difference of two means, and what every kind made of one has in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from .linear import Hyperplane, SupervisedProbe
from .sample import Labelled


class OfDifference(SupervisedProbe):
    """A probe whose direction is a linear map of the difference of two means, and no label has a say in the map.

    The difference is a sum over questions of ± what answering each does, so the direction is one too: that is what
    lets the labels of the questions be shuffled a hundred thousand times without a new fit (`shuffles`).
    """

    @abstractmethod
    def _mapped(self, sample: Labelled, differences: Float[Tensor, "layer k d"]) -> Float[Tensor, "layer k d"]:
        """What the map makes of each of `k` differences; it may look at the sample's rows but not at their marks."""

    def _solve(self, sample: Labelled) -> Hyperplane:
        defecting, other, _ = sample.means
        coef = self._mapped(sample, (defecting - other)[:, None])[:, 0]
        return plane_through(coef, (defecting + other) / 2)

    def question_directions(
        self, sample: Labelled, effects: Float[Tensor, "question layer d"]
    ) -> Float[Tensor, "question layer d"] | None:
        """The map of each question's effect."""
        return self._mapped(sample, effects.transpose(0, 1)).transpose(0, 1)


class MeanDifference(OfDifference):
    """Direction: mean over the defecting rows minus mean over the others; scores change sign halfway between.

    Clean prompts only set the scale and the threshold of the scores.

    Examples:
        >>> auroc(MeanDifference().fit(X, y).decision_function(X), y).shape
        torch.Size([3])
    """

    name = "mean-difference"

    def _mapped(self, sample: Labelled, differences: Float[Tensor, "layer k d"]) -> Float[Tensor, "layer k d"]:
        return differences


def plane_through(coef: Float[Tensor, "layer d"], point: Float[Tensor, "layer d"]) -> Hyperplane:
    """The hyperplane with these normals whose score is 0 at `point`."""
    return Hyperplane(coef, -torch.linalg.vecdot(coef, point))
