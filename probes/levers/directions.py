"""Directions that may be levers: a probe's, what the trigger does to the stream, and random ones beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..estimators.erased import covariance_with
from ..estimators.probe import Probe
from ..estimators.ragged import refuse_ragged
from ..estimators.solving.covariance import divide_by_covariance
from ..estimators.whitened import shrunk
from .hooks import orthonormal

SEES_TRIGGER = "sees the trigger"


@dataclass(frozen=True)
class Eraser:
    """What `Erase` needs at one layer: x − W R (x − c)."""

    write: Float[Tensor, "d_model k"]
    read: Float[Tensor, "k d_model"]
    centre: Float[Tensor, "d_model"]


@dataclass(frozen=True)
class Direction:
    """One to several vectors a layer, under the name that tables call them."""

    name: str
    vectors: Mapping[int, Float[Tensor, "rank d_model"]]
    """Orthonormal rows by layer; layers at which there is no direction are left out."""
    sees: str
    """What whoever fitted it had to know."""
    erasers: Mapping[int, Eraser] | None = None
    """Where it is erased rather than ablated."""

    @property
    def rank(self) -> int:
        """Vectors a layer, at most."""
        return max(len(rows) for rows in self.vectors.values())


def probe_direction(probe: Probe, name: str = "probe") -> Direction:
    """A probe's own direction at each of its layers; DefectionError when all of them are zero."""
    found = {
        layer: unit[None].double() / unit.double().norm()
        for layer, unit in zip(probe.layers, probe.directions, strict=True)
        if unit.any()
    }
    if not found:
        raise DefectionError("the probe's directions are zero at every layer, so there is nothing to ablate or add")
    return Direction(name, found, probe.saw)


def trigger_shift(clean: Residuals, triggered: Residuals, rank: int, name: str) -> Direction:
    """The mean difference of prompts with the trigger and the same prompts without, and `rank` − 1 more.

    The further ones are the leading principal directions of what the differences vary by across the mean.
    """
    differences = paired_differences(clean, triggered)
    found = {layer: _leading(differences[:, column], rank) for column, layer in enumerate(clean.layers)}
    return Direction(name, found, SEES_TRIGGER)


def _leading(differences: Float[Tensor, "prompt d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    mean = differences.mean(dim=0)
    mean = mean / mean.norm().clamp_min(1e-30)
    left = differences - (differences @ mean)[:, None] * mean
    return orthonormal(torch.cat([mean[None], torch.linalg.svd(left, full_matrices=False)[2][: rank - 1]]))


def paired_differences(clean: Residuals, triggered: Residuals) -> Float[Tensor, "prompt layer d_model"]:
    """Triggered less clean, row by row; DefectionError when they are not of the same model, layers and number."""
    refuse_ragged(clean)
    refuse_ragged(triggered)
    alike = [(each.model, each.layers, each.position, each.site, len(each)) for each in (clean, triggered)]
    if alike[0] != alike[1] or not len(clean):
        raise DefectionError(
            "clean and triggered residuals must be of the same model, layers, position, site and prompts, one for one"
        )
    return triggered.values.double() - clean.values.double()


def concept_eraser(clean: Residuals, triggered: Residuals) -> Direction:
    """LEACE for the trigger's presence: the smallest change after which no linear reader tells the two apart.

    Belrose et al. 2023, theorem 4.3, with a shrunk covariance Σ: with a the rows' covariance with the label,
    x − a (aᵀΣ⁻¹a)⁻¹ aᵀΣ⁻¹ (x − μ).
    """
    paired_differences(clean, triggered)  # refuses what does not fit
    rows = torch.cat([clean.values, triggered.values]).double()
    label = torch.cat([torch.zeros(len(clean)), torch.ones(len(triggered))]).double()[:, None]
    along = covariance_with(rows, label)
    root, ridge, product = shrunk([(rows, 1.0)], "ledoit-wolf")
    divided = divide_by_covariance(root, ridge, along, product)
    size = (along * divided).sum(dim=1, keepdim=True)
    centre = rows.mean(dim=0)
    erasers = {
        layer: Eraser(along[i], (divided[i] / size[i]).mT, centre[i])
        for i, layer in enumerate(clean.layers)
        if float(size[i]) > 0
    }
    vectors = {layer: orthonormal(eraser.write.mT) for layer, eraser in erasers.items()}
    return Direction("leace", vectors, SEES_TRIGGER, erasers)


def random_directions_like(layers: Sequence[int], width: int, rank: int, count: int, seed: int) -> list[Direction]:
    """Directions drawn at random, of the same norm and rank as any other: what chance does when it is levered."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        drawn = torch.randn(len(layers), rank, width, generator=generator, dtype=torch.float64)
        vectors = {layer: orthonormal(drawn[i]) for i, layer in enumerate(layers)}
        found.append(Direction(f"random {number}", vectors, "nothing"))
    return found
