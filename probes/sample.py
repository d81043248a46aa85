"""What an estimator's solve is handed: rows and what is known of each, as tensors on one device, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .guard import Evidence

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2 * 2**30}
"""Layers are solved together while an fp64 copy of each kind of rows fits into so much: a cache, a GPU's memory."""
AT_ONCE = 2**17
"""Numbers converted to fp64 at a time: a megabyte, so that they stay in the cache and cost no fresh memory."""
COLUMNS = 2**12
"""As many of them side by side: long enough to be read in one sweep, with dozens of rows to a product."""


@dataclass(frozen=True)
class Sample:
    """Rows of every kind that a fit was given, [row, layer, d] each in the dtype they came in."""

    rows: Float[Tensor, "n layer d"] | None
    """Contrast texts or labelled rows; None when there were none, or they may not be seen."""
    marks: Bool[Tensor, "n"] | None = None
    """Which rows are the defecting ones."""
    clean: Float[Tensor, "clean layer d"] | None = None
    traffic: Float[Tensor, "traffic layer d"] | None = None
    groups: Int[Tensor, "n"] | None = None
    """The topic of each row, as a number."""
    pairs: Int[Tensor, "pair 2"] | None = None
    """Row numbers of the two answers to one question, ordered by answer word and never by which one defects."""
    nuisance: Float[Tensor, "n k"] | None = None
    """What the scores must not depend on, as numbers a row."""
    clean_nuisance: Float[Tensor, "clean k2"] | None = None

    def restricted(self, sees: Set[Evidence]) -> Sample:
        """Without the rows that an estimator does not declare to see: what it is not handed it cannot use."""
        kept = self
        if not sees & {Evidence.CONTRAST, Evidence.LABELLED}:
            kept = replace(kept, rows=None, marks=None, groups=None, pairs=None, nuisance=None)
        if Evidence.CLEAN not in sees:
            kept = replace(kept, clean=None, clean_nuisance=None)
        return kept if Evidence.TRAFFIC in sees else replace(kept, traffic=None)

    @property
    def values(self) -> list[Tensor]:
        """The rows of every kind that is there."""
        return [rows for rows in (self.rows, self.clean, self.traffic) if rows is not None]

    @property
    def coarse(self) -> bool:
        """Whether no row came in fp64, so that products may be taken in fp32 before they are polished."""
        return all(rows.dtype != torch.float64 for rows in self.values)

    @property
    def n_layers(self) -> int:
        """How many layers the rows have."""
        return self.values[0].shape[1]

    def chunks(self) -> Iterator[Sample]:
        """Consecutive layers, as many at a time as fit into memory in fp64."""
        bytes_per_layer = max(8 * rows.shape[0] * rows.shape[2] for rows in self.values)
        step = max(1, CHUNK_BYTES.get(self.values[0].device.type, CHUNK_BYTES["cpu"]) // max(1, bytes_per_layer))
        for start in range(0, self.n_layers, step):
            cut = {
                field.name: rows[:, start : start + step]
                for field in fields(self)
                if field.name in ("rows", "clean", "traffic") and (rows := getattr(self, field.name)) is not None
            }
            yield replace(self, **cut)


def stacked(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "layer n d"]:
    """Layers first, in fp64 (PITFALLS 14): one matrix a layer, ready for batched linear algebra."""
    return rows.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def centred(
    rows: Float[Tensor, "n layer d"], mean: Float[Tensor, "layer d"] | None = None, *, coarse: bool = False
) -> tuple[Float[Tensor, "layer n d"], Float[Tensor, "layer d"]]:
    """Stacked rows minus their mean, and the mean; with `coarse` narrow rows stay fp32, the mean is fp64 all the same.

    A `mean` that is at hand, exact for narrow rows as `class_means` gives it, saves a pass over them.

    Equal rows give exact zeros instead of the rounding of their mean (PITFALLS 16): narrow ones add up in fp64 without
    rounding, and fp64 ones are measured from the first row before the mean is taken.
    """
    if rows.dtype != torch.float64 and not rows.is_cuda:
        if mean is None:
            mean = weighted_sums(rows, torch.ones(1, len(rows), dtype=torch.float64))[0] / len(rows)
        kind = torch.float32 if coarse else torch.float64
        # Converted first: a subtraction that converts as it goes takes several times as long.
        stack = rows.transpose(0, 1).to(kind, memory_format=torch.contiguous_format, copy=True)
        stack -= mean[:, None].to(kind)
        return stack, mean
    stack = stacked(rows)
    origin = stack[:, 0].clone()
    stack -= origin[:, None]
    shift = stack.mean(dim=1)
    stack -= shift[:, None]
    return stack, origin + shift


class Means(NamedTuple):
    """Means in fp64, [layer, d] each."""

    defecting: Float[Tensor, "layer d"]
    other: Float[Tensor, "layer d"]
    all: Float[Tensor, "layer d"]


def class_means(rows: Float[Tensor, "n layer d"], marks: Bool[Tensor, "n"]) -> Means:
    """Means of the defecting rows, the others and both, summed in fp64 whatever the rows' dtype (PITFALLS 14)."""
    indicators = torch.stack([marks, ~marks]).double()
    defecting, other = weighted_sums(rows, indicators)
    counts = indicators.sum(dim=1)
    # Sums of narrow rows are exact, and so is the mean of equal ones (PITFALLS 16): divided last.
    return Means(defecting / counts[0], other / counts[1], (defecting + other) / len(rows))


def weighted_sums(rows: Float[Tensor, "n layer d"], weights: Float[Tensor, "k n"]) -> Float[Tensor, "k layer d"]:
    """Sums over rows, in fp64 but without an fp64 copy of them all: a block at a time, in one pass."""
    if rows.is_cuda:
        return (weights @ rows.double().flatten(1)).view(len(weights), *rows.shape[1:])
    flat = rows.reshape(len(rows), -1)
    width = max(1, min(flat.shape[1], COLUMNS))
    height = max(1, AT_ONCE // width)
    total = torch.zeros(len(weights), flat.shape[1], dtype=torch.float64)
    sums, shares = total.numpy(), weights.numpy()
    for left in range(0, flat.shape[1], width):
        for top in range(0, len(flat), height):
            part = flat[top : top + height, left : left + width].double().numpy()
            sums[:, left : left + width] += shares[:, top : top + height] @ part
    return total.view(len(weights), *rows.shape[1:])
