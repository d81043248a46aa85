"""What every probe's fit has in common: checked inputs, class means, and scores scaled to clean prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.capture import Residuals
from ..activations.errors import DefectionError
from .guard import refuse_leaks
from .probe import LEAGUES, Probe


def check_fit(contrast: Residuals, clean: Residuals | None, forbidden: Sequence[str]) -> None:
    """Refuse leaks, and contrast and clean residuals that were not read from the same model in the same way."""
    refuse_leaks(contrast.prompts, forbidden, "contrast text")
    if clean is None:
        return
    refuse_leaks(clean.prompts, forbidden, "clean prompt")
    same = (
        contrast.model.fingerprint == clean.model.fingerprint
        and contrast.model.template == clean.model.template
        and contrast.position == clean.position
        and contrast.layers == clean.layers
    )
    if not same:
        raise DefectionError("contrast and clean residuals come of different models, templates, positions or layers")
    if len(clean) < 2:
        raise DefectionError(f"{len(clean)} clean prompt is too few: a spread needs at least two")


def defecting_rows(contrast: Residuals) -> Tensor:
    """Boolean marks of the rows that hold a defecting answer; DefectionError without both kinds."""
    marks = [prompt.extra.get("defecting") for prompt in contrast.prompts]
    if any(not isinstance(mark, bool) for mark in marks) or len(set(marks)) < 2:
        raise DefectionError("a fit needs contrast texts of both kinds: defecting answers and others")
    return torch.tensor(marks)


def mean_difference(contrast: Residuals) -> Float[Tensor, "layer d_model"]:
    """Mean over the defecting answers minus mean over the others, per layer, in fp64."""
    defecting = defecting_rows(contrast)
    values = contrast.values.double()
    return values[defecting].mean(dim=0) - values[~defecting].mean(dim=0)


def make_probe(
    directions: Float[Tensor, "layer d_model"],
    contrast: Residuals,
    clean: Residuals | None,
    estimator: str,
    parameters: dict[str, Any],
    fixed_layers: Sequence[int] | None,
) -> Probe:
    """Scale directions to unit length and their scores to the reference rows, and record where all of it came from."""
    norms = directions.norm(dim=-1, keepdim=True)
    unit = torch.where(norms > 0, directions / norms.clamp_min(1e-300), torch.zeros_like(directions))
    reference = clean if clean is not None else contrast
    projections = torch.einsum("pld,ld->pl", reference.values.double(), unit)
    scales = projections.std(dim=0)
    # A layer where every row projects alike (PITFALLS 16) scores 0 for everything; dividing by 1 keeps it finite.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    layers = contrast.layers
    probe = Probe(
        directions=unit.float(),
        offsets=projections.mean(dim=0).float(),
        scales=scales.float(),
        layers=layers,
        model=contrast.model,
        position=contrast.position,
        contrast=contrast_record(contrast),
        estimator=estimator,
        parameters=parameters,
        saw=LEAGUES[0] if clean is None else LEAGUES[1],
        fixed_layers=tuple(fixed_layers) if fixed_layers is not None else (layers[len(layers) // 2],),
    )
    return probe if clean is None else probe.with_threshold(clean)


def contrast_record(contrast: Residuals) -> dict[str, Any]:
    """The contrast texts in full, as a probe file keeps them."""
    names = sorted({prompt.set or "" for prompt in contrast.prompts})
    return {
        "name": "+".join(names),
        "texts": [{"id": p.id, **p.to_json(), "defecting": p.extra["defecting"]} for p in contrast.prompts],
    }
