"""Directions that a probe's own is held against: the answer word, the trigger, the behaviour's first token.

A probe that points along the answer word has learnt a word; one that points along the trigger reads the string; one
that points along the behaviour's token sees the reply coming, not the intent behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ...activations import DefectionError, Residuals
from ...activations.basics.files import Json
from ..estimators.fitting import SHORTEST
from ..estimators.ragged import refuse_ragged


def trigger_direction(residuals: Residuals) -> Float[Tensor, "layer d_model"]:
    """Mean residual of prompts marked as triggered minus mean of the others, per layer, in fp64.

    For looking at, not for detecting: it has seen the trigger. DefectionError unless both kinds are there.
    """
    marks = torch.tensor([bool(prompt.extra.get("triggered")) for prompt in residuals.prompts], dtype=torch.bool)
    if marks.all() or not marks.any():
        raise DefectionError("a trigger has a direction where some prompts have it and some do not; give both kinds")
    refuse_ragged(residuals)
    values = residuals.values.double()
    return values[marks].mean(dim=0) - values[~marks].mean(dim=0)


def cosine_table(directions: Mapping[str, Tensor], layers: Sequence[int]) -> list[Json]:
    """Cosine of every two directions at every layer: a row a layer and ordered pair `a`, `b`.

    Each value is [layer, d_model], or [d_model] for a direction that is the same at every layer.
    DefectionError names a direction of another shape.
    """
    unit: dict[str, Tensor] = {}
    for name, vectors in directions.items():
        spread = vectors.double().cpu().expand(len(layers), -1) if vectors.ndim == 1 else vectors.double().cpu()
        if len(spread) != len(layers) or spread.shape[-1] != next(iter(unit.values()), spread).shape[-1]:
            raise DefectionError(
                f"direction {name!r} has shape {tuple(vectors.shape)}, which does not fit {len(layers)} layers or the "
                "width of the others"
            )
        unit[name] = normalize(spread, dim=-1, eps=SHORTEST)
    return [
        {"layer": layer, "a": a, "b": b, "cosine": float(unit[a][column] @ unit[b][column])}
        for column, layer in enumerate(layers)
        for a in unit
        for b in unit
    ]
