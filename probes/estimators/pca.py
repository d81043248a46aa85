"""The two probes that are a first principal component with a sign."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...activations import DefectionError, Residuals
from .components import leading_components
from .fitting import answer_pairs
from .guard import Evidence
from .linear import Hyperplane, SupervisedProbe
from .mean_difference import plane_through
from .sample import Labelled, Means, centred


class PCAProbe(SupervisedProbe):
    """The first principal component of the contrast texts, towards the defecting answers: `sklearn.decomposition.PCA`.

    Labels only choose between the component and its opposite.

    Examples:
        >>> PCAProbe().fit(X, y).decision_function(X).shape
        (40, 3)
    """

    name = "pca"
    sees = frozenset({Evidence.CONTRAST})

    def _solve(self, sample: Labelled) -> Hyperplane:
        rows, mean = centred(sample.rows, coarse=sample.coarse)
        return plane_through(signed(leading_components(rows, 1)[:, 0], sample.means), mean)


class PairPCAProbe(PCAProbe):
    """The first principal component of the differences within pairs (Zou et al. 2023, "reading vectors", linear scan).

    Which answer is subtracted from which is random in the paper; here both orders are taken, so that the differences
    have mean 0 and the result depends on no draw. Arrays need `pairs` [pair, 2], row numbers of two answers each.

    Examples:
        >>> PairPCAProbe().fit(X, y, pairs=pairs).decision_function(X).shape
        (40, 3)
    """

    name = "pair-pca"

    def _facts(self, contrast: Residuals, clean: Residuals | None) -> dict[str, Tensor | None]:
        return {"pairs": answer_pairs(contrast)}

    def _solve(self, sample: Labelled) -> Hyperplane:
        pairs = checked_pairs(sample, self.name)
        kind = torch.promote_types(sample.rows.dtype, torch.float32)
        gaps = sample.rows[pairs[:, 0]].to(kind).sub_(sample.rows[pairs[:, 1]])
        component = leading_components(gaps.transpose(0, 1), 1)[:, 0]
        return plane_through(signed(component, sample.means), sample.means.all)


def signed(directions: Float[Tensor, "layer d"], means: Means) -> Float[Tensor, "layer d"]:
    """Each direction or its opposite, so that the defecting rows lie higher on average."""
    agreement = torch.linalg.vecdot(directions, means.defecting - means.other)
    return torch.where(agreement[:, None] < 0, -directions, directions)


def checked_pairs(sample: Labelled, name: str) -> Int[Tensor, "pair 2"]:
    """The sample's pairs; DefectionError when there are none, or they name rows that are not there."""
    pairs, n = sample.pairs, len(sample.rows)
    if pairs is None:
        raise DefectionError(f"a {name} probe needs pairs: [pair, 2] row numbers of the two answers to each question")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.min() < 0 or pairs.max() >= n:
        raise DefectionError(f"pairs must be [pair, 2] row numbers below {n}, not of shape {tuple(pairs.shape)}")
    return pairs
