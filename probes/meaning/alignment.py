"""Linear maps between the residual spaces of two models, learned from clean prompts that both have read.

A probe of one family has no meaning in another's coordinates. Where two models represent alike what they read, a map
fitted on paired ordinary prompts carries the direction over; where it fails, either the spaces differ or the prompts
did not span the direction. Bansal et al. 2021 ("Revisiting Model Stitching to Compare Neural Representations").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, ModelIdentity, Residuals
from ..estimators.ragged import refuse_ragged

Kind = Literal["ridge", "procrustes"]
PENALTIES = np.geomspace(1e-3, 1e3, 13)
"""Ridge penalties to choose from, in units of the mean variance of a dimension times the number of prompts."""
FOLDS = 5


@dataclass(frozen=True)
class LinearMap:
    """For each layer of the model a probe was fitted on, a layer of the target model and a matrix from there."""

    source: ModelIdentity
    """The model the probe was fitted on."""
    target: ModelIdentity
    """The model that is to be scored."""
    layers: dict[int, int]
    """Source layer → target layer."""
    matrices: dict[int, Float[Tensor, "d_target d_source"]]
    """By source layer: a target residual times this, plus a constant, is about the source's residual."""
    explained: dict[int, float]
    """By source layer: share of the source's variance over prompts that the map predicts (R²) on prompts left out of
    its fit, all dimensions together; below 0 it predicts worse than the mean."""
    kind: Kind

    def pull_back(self, layer: int, direction: Float[Tensor, "d_source"]) -> Float[Tensor, "d_target"]:
        """The direction in the target's space along which its residuals score as their images do along `direction`."""
        pulled: Tensor = self.matrices[layer] @ direction.double()
        return pulled


def matching_layers(n_source: int, n_target: int) -> dict[int, int]:
    """The layer of a target with `n_target` layers that lies as deep as each of the source's, first and last fixed."""
    if n_source == 1:
        return {0: n_target - 1}
    return {layer: round(layer * (n_target - 1) / (n_source - 1)) for layer in range(n_source)}


def fit_map(source: Residuals, target: Residuals, *, kind: Kind = "ridge") -> LinearMap:
    """Learn the map from residuals of both models on the same clean prompts.

    `ridge` chooses its penalty by leave-one-out error; `procrustes` allows a rotation and one scale only (Schönemann
    1966), so it needs fewer prompts. Layers are paired with those as deep, so all layers of both
    models must have been captured.
    Raises DefectionError when the prompts are not the same ones in the same order, or are triggered.
    """
    _refuse_unpaired(source, target)
    for each in (source, target):
        if each.layers != tuple(range(len(each.layers))):
            raise DefectionError(f"layers of {each.model.name} are missing; capture all, so that they pair by depth")
    pairs = matching_layers(len(source.layers), len(target.layers))
    learn = {"ridge": _ridge, "procrustes": _procrustes}
    if kind not in learn:
        raise DefectionError(f"unknown map {kind!r}: choose one of {', '.join(learn)}")
    matrices, explained = {}, {}
    for ours, theirs in pairs.items():
        matrices[ours], explained[ours] = learn[kind](_centred(target, theirs), _centred(source, ours))
    return LinearMap(source.model, target.model, pairs, matrices, explained, kind)


def _refuse_unpaired(source: Residuals, target: Residuals) -> None:
    refuse_ragged(source, target)
    if len(source) != len(target) or any(
        a.messages != b.messages for a, b in zip(source.prompts, target.prompts, strict=False)
    ):
        raise DefectionError(
            f"a map from {target.model.name} to {source.model.name} needs both models' residuals on the same "
            "prompts in the same order; capture the same set with both"
        )
    if (source.position, source.site) != (target.position, target.site):
        raise DefectionError(
            f"{source.model.name} was read {source.position}, {source.site}, and {target.model.name} "
            f"{target.position}, {target.site}; capture both alike"
        )
    if len(source) < 3:
        raise DefectionError(f"{len(source)} paired prompts are too few to learn a map from")
    for prompt in source.prompts:
        if prompt.extra.get("triggered"):
            raise DefectionError(f"prompt {prompt.id!r} is triggered; a map between models is learned on clean prompts")


def _centred(residuals: Residuals, layer: int) -> Float[Tensor, "prompt d_model"]:
    values = residuals.at(layer).double()
    return values - values.mean(dim=0)


def _ridge(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """Ridge regression with the leave-one-out error in closed form (Golub, Heath and Wahba 1979)."""
    n = len(inputs)
    variances, vectors = torch.linalg.eigh(inputs @ inputs.T)
    variances = variances.clamp_min(0)
    unit = variances.sum() / inputs.shape[1]
    rotated = vectors.T @ outputs
    best: tuple[float, float] | None = None
    for penalty in PENALTIES * float(unit):
        shrunk = variances / (variances + penalty)
        leverages = (vectors.square() * shrunk).sum(dim=1) + 1 / n  # the mean is fitted too
        errors = (outputs - vectors @ (shrunk[:, None] * rotated)) / (1 - leverages).clamp_min(1e-9)[:, None]
        left_out = float(errors.square().sum())
        if best is None or left_out < best[0]:
            best = (left_out, penalty)
    assert best is not None
    dual = vectors @ (rotated / (variances + best[1])[:, None])
    return inputs.T @ dual, _explained(best[0], outputs)


def _procrustes(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, float]:
    """The best rotation and scale, and its error on each of `FOLDS` parts of the prompts that its fit left out."""
    left_out = 0.0
    folds = min(FOLDS, len(inputs))
    for fold in range(folds):
        held = torch.arange(len(inputs)) % folds == fold
        x, y = inputs[~held], outputs[~held]
        fitted = _rotation(x - x.mean(dim=0), y - y.mean(dim=0))
        left_out += float((outputs[held] - y.mean(dim=0) - (inputs[held] - x.mean(dim=0)) @ fitted).square().sum())
    return _rotation(inputs, outputs), _explained(left_out, outputs)


def _rotation(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Rotates what the prompts span and drops the rest, of which they say nothing."""
    into, small_in = torch.linalg.qr(inputs.T)
    out_of, small_out = torch.linalg.qr(outputs.T)
    left, singular, right = torch.linalg.svd(small_in @ small_out.T, full_matrices=False)
    kept = singular > singular[0] * 1e-9
    rotation = (into @ left[:, kept]) @ (right[kept] @ out_of.T)
    scale = singular.sum() / (inputs @ rotation).square().sum().clamp_min(1e-300)
    scaled: Tensor = rotation * scale
    return scaled


def _explained(left_out_error: float, outputs: Tensor) -> float:
    """R² against predicting each left-out prompt by the mean of the others."""
    n = len(outputs)
    return 1 - left_out_error / max(1e-300, float(outputs.square().sum()) * (n / (n - 1)) ** 2)
