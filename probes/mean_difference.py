"""The probe of MacDiarmid et al. 2024: the difference of two means."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .estimator import Hyperplane, LinearProbe
from .sample import Sample


class MeanDifference(LinearProbe):
    """Direction: mean over the defecting rows minus mean over the others; scores change sign halfway between.

    Clean prompts only set the scale and the threshold of the scores.
    """

    name = "mean-difference"

    def _solve(self, sample: Sample) -> Hyperplane:
        assert sample.rows is not None
        assert sample.marks is not None
        return halfway(sample.means.defecting, sample.means.other)


def halfway(defecting: Float[Tensor, "layer d"], other: Float[Tensor, "layer d"]) -> Hyperplane:
    """The hyperplane across the difference of two means, halfway between them."""
    return plane_through(defecting - other, (defecting + other) / 2)


def plane_through(coef: Float[Tensor, "layer d"], point: Float[Tensor, "layer d"]) -> Hyperplane:
    """The hyperplane with these normals whose score is 0 at `point`."""
    return Hyperplane(coef, -torch.linalg.vecdot(coef, point))
