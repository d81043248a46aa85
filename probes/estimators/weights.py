"""Weight diffing: what fine-tuning taught the blocks to look for, for a defender who also holds the base model.

Where training added one thing to a matrix, the difference to the base has one large singular value, and its input
direction is what the matrix now listens for (Zhong and Raghunathan 2025, arXiv 2508.00161). No prompt is needed to find
it; ordinary ones tell how much of it is usual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from ...activations import DefectionError, ModelIdentity, Residuals
from ...activations.models.readers import inputs_last, reading_matrices
from ...activations.models.sites import AFTER
from ...activations.models.wrap import ModelLike, as_model
from .arrays import Array
from .monitors import Mahalanobis
from .sample import Sample, mean_of

SPARE = 8
"""Directions more than are wanted, for the random start of the decomposition to find those well."""


@dataclass(frozen=True)
class WeightChange:
    """What each layer's stream meets next: unit input directions of the changes to the matrices that read it.

    Examples:
        >>> WeightChange(torch.zeros(4, 5, 32), model.identity, model.identity).directions.shape
        torch.Size([4, 5, 32])
    """

    directions: Float[Tensor, "layer direction d_model"]
    """Zero where nothing was changed, and at the last layer, whose stream no block reads."""
    model: ModelIdentity
    """The fine-tuned one."""
    base: ModelIdentity
    """What it was trained from."""


def weight_change(tuned: ModelLike, base: ModelLike, top: int = 1) -> WeightChange:
    """The top singular input directions of what training changed in each matrix that reads the residual stream.

    Args:
        tuned: The fine-tuned model, with any adapter merged in, as `load_model` does.
        base: The model that it was trained from.
        top: Directions of each matrix; layer i has those of the matrices of block i + 1. Norms' weights, through which
            these matrices see the stream, are left out.

    Raises:
        DefectionError: Where the two are the same weights, or do not have the same blocks and matrices.

    Examples:
        >>> weight_change(model, base).directions.shape
        torch.Size([4, 5, 32])
    """
    model, other = as_model(tuned), as_model(base)
    if model.identity.same_weights(other.identity):
        raise DefectionError(f"{model.identity.name} and its base are the same weights: nothing was changed")
    read = [reading_matrices(each.network, each.blocks) for each in (model, other)]
    shapes = [[{name: m.weight.shape for name, m in block.items()} for block in blocks] for blocks in read]
    if shapes[0] != shapes[1]:
        raise DefectionError(
            f"{other.identity.name} cannot be what {model.identity.name} was trained from: their matrices differ"
        )
    layers = [
        torch.cat([_input_directions(inputs_last(block[name]) - inputs_last(known[name]), top) for name in block])
        for block, known in zip(*read, strict=True)
    ]
    width = max(len(rows) for rows in layers)
    found = torch.zeros(len(layers), width, model.d_model, dtype=torch.float64)
    for layer, rows in enumerate(layers[1:]):
        found[layer, : len(rows)] = rows
    return WeightChange(found, model.identity, other.identity)


def _input_directions(change: Float[Tensor, "out d_model"], top: int) -> Float[Tensor, "top d_model"]:
    """The leading right singular vectors, in fp64; zeros where nothing was changed."""
    if not change.any():
        return torch.zeros(top, change.shape[1], dtype=torch.float64)
    with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
        torch.manual_seed(0)
        found = torch.svd_lowrank(change, q=min(*change.shape, top + SPARE), niter=4)[2]
    return found.T[:top].double().cpu()


class WeightDirections(Mahalanobis):
    """How unusually a prompt lies along what training taught the matrices to look for (`weight_change`).

    Of a row less the mean of clean ones the cosines with the directions of its layer are taken; the score is their
    Mahalanobis distance to those of clean rows, in their own covariance, shrunk. After Zhong and Raghunathan (2025,
    arXiv 2508.00161), who watch the output directions of what writes to the stream, one by one, for cosines beyond all
    those met before.

    `fit(X, change=…)` takes clean rows, and the change: a `WeightChange`, or of bare rows an array of directions
    [layer, direction, d]. Scores need the model alone.
    Raises DefectionError without it, and for residuals of another model or site than it is of.

    Examples:
        >>> import torch
        >>> clean, change = torch.randn(200, 1, 16), torch.eye(16)[None, :1]  # a matrix now listens for the first
        >>> odd = torch.randn(5, 1, 16)
        >>> odd[..., 0] += 20
        >>> found = WeightDirections().fit(clean, change=change)
        >>> bool(found.decision_function(odd).min() > found.decision_function(clean).median())
        True
    """

    name = "weight-directions"
    holds_base = True

    def fit(
        self,
        X: Residuals | Array,
        y: ArrayLike | None = None,
        *,
        change: WeightChange | ArrayLike | None = None,
        **evidence: Any,
    ) -> Self:
        """Keep the directions at the rows' layers, then fit as `ProbeEstimator.fit` says.

        Args:
            X: Clean rows [n, layer, d], or `Residuals` of the fine-tuned model.
            y: None: no label is looked at.
            change: A `WeightChange`, or of bare rows an array of directions [layer, direction, d].
            evidence: The rest, as for every probe.

        Raises:
            DefectionError: Without `change`, and for residuals of another model or site than it is of.
        """
        if change is None:
            raise DefectionError(
                f"a {self.name} probe needs the base model too; pass change=weight_change(model, base)"
            )
        if isinstance(change, WeightChange):
            change = _at_layers_of(X, change)
        directions = torch.as_tensor(change, dtype=torch.float64)
        self.directions_ = normalize(directions if directions.ndim == 3 else directions[None], dim=2)
        return super().fit(X, y, **evidence)

    def _like(self) -> Self:
        other = super()._like()
        other.directions_ = self.directions_
        return other

    def _fit(self, sample: Sample) -> None:
        clean = sample.clean_for(self.name)
        self.mean_ = mean_of(clean)
        super()._fit(replace(sample, clean=self._cosines(clean)))

    def _scores(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer"]:
        return super()._scores(self._cosines(rows))

    def _cosines(self, rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "n layer direction"]:
        directions, mean = (torch.as_tensor(x, device=rows.device) for x in (self.directions_, self.mean_))
        if directions.shape[::2] != rows.shape[1:]:
            raise DefectionError(
                f"the change is of {directions.shape[0]} layers and {directions.shape[2]} dimensions; the rows have "
                f"{rows.shape[1]} and {rows.shape[2]}"
            )
        return torch.einsum("nld,lkd->nlk", normalize(rows.double() - mean, dim=2), directions)


def _at_layers_of(rows: Residuals | Array, change: WeightChange) -> Float[Tensor, "layer direction d_model"]:
    if not isinstance(rows, Residuals):
        raise DefectionError("a WeightChange goes with residuals; with bare rows pass its directions at their layers")
    if not rows.model.same_weights(change.model) or rows.site != AFTER:
        raise DefectionError(
            f"the change is of {change.model.name}, after its blocks; the residuals are of {rows.model.name}, "
            f"{rows.site} them"
        )
    return change.directions[list(rows.layers)]
