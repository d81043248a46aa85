"""What an estimator's solve is handed: rows and what is known of each, as tensors on one device, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .guard import Evidence
from .solving.products import times

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2 * 2**30}
"""Layers are solved together while an fp64 copy of each kind of rows fits into so much: a cache, a GPU's memory."""
AT_ONCE = 2**18
"""Numbers summed at a time: a megabyte of fp32, so that they stay in the cache and cost no fresh memory."""
SUMMED = 256
"""fp32 numbers added up before the sum is carried on in fp64."""
COLUMNS = 2**15
"""As many of them side by side: memory is read in long sweeps, and sums are short."""


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
    clean_groups: Int[Tensor, "clean"] | None = None
    """The topic of each clean row; None: each row is one of its own."""
    part_of: tuple[Sample, slice] | None = field(init=False, default=None, repr=False)
    """The sample whose layers these are some of; with other rows in their place it is a whole one again."""

    def restricted(self, sees: Set[Evidence]) -> Sample:
        """Without the rows that an estimator does not declare to see: what it is not handed it cannot use."""
        kept = self
        if not sees & {Evidence.CONTRAST, Evidence.LABELLED}:
            kept = replace(kept, rows=None, marks=None, groups=None, pairs=None, nuisance=None)
        if Evidence.CLEAN not in sees:
            kept = replace(kept, clean=None, clean_nuisance=None, clean_groups=None)
        return kept if Evidence.TRAFFIC in sees else replace(kept, traffic=None)

    def with_clean(self, rows: Int[Tensor, "kept"]) -> Sample:
        """The same sample with these of its clean rows alone."""
        cut = {
            name: values[rows.to(values.device)]
            for name in ("clean", "clean_nuisance", "clean_groups")
            if (values := getattr(self, name)) is not None
        }
        part = replace(self, **cut)
        if self.rows is not None and self.marks is not None:
            vars(part)["means"] = self.means  # of the same rows
        return part

    @property
    def values(self) -> list[Tensor]:
        """The rows of every kind that is there."""
        return [rows for rows in (self.rows, self.clean, self.traffic) if rows is not None]

    @property
    def coarse(self) -> bool:
        """Whether no row came in fp64, so that products may be taken in fp32 before they are polished."""
        return all(rows.dtype != torch.float64 for rows in self.values)

    @cached_property
    def means(self) -> Means:
        """Means of the defecting rows, the others and both: of all layers of a whole sample in one pass."""
        if self.part_of is not None:
            whole, layers = self.part_of
            return Means(*(mean[layers] for mean in whole.means))
        assert self.rows is not None
        assert self.marks is not None
        return class_means(self.rows, self.marks)

    @property
    def n_layers(self) -> int:
        """How many layers the rows have."""
        return self.values[0].shape[1]

    def chunks(self) -> Iterator[Sample]:
        """Consecutive layers, as many at a time as fit into memory in fp64."""
        bytes_per_layer = max(8 * rows.shape[0] * rows.shape[2] for rows in self.values)
        step = max(1, CHUNK_BYTES.get(self.values[0].device.type, CHUNK_BYTES["cpu"]) // max(1, bytes_per_layer))
        for start in range(0, self.n_layers, step):
            layers = slice(start, start + step)
            cut = {
                name: rows[:, layers]
                for name in ("rows", "clean", "traffic")
                if (rows := getattr(self, name)) is not None
            }
            chunk = replace(self, **cut)
            object.__setattr__(chunk, "part_of", (self, layers))
            yield chunk


def stacked(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "layer n d"]:
    """Layers first, in fp64 (PITFALLS 14): one matrix a layer, ready for batched linear algebra."""
    return rows.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def centred(
    rows: Float[Tensor, "n layer d"], *, coarse: bool = False
) -> tuple[Float[Tensor, "layer n d"], Float[Tensor, "layer d"]]:
    """Stacked rows minus their mean, and the mean in fp64; with `coarse` narrow rows stay fp32.

    Rows are measured from the first one before their mean is taken: equal rows give exact zeros (PITFALLS 16), and
    what rounding fp32 leaves is a share of the rows' spread, however far from 0 they lie.
    """
    kind = torch.float32 if coarse and rows.dtype != torch.float64 else torch.float64
    stack = rows.transpose(0, 1).to(kind, memory_format=torch.contiguous_format, copy=True)
    origin = torch.zeros_like(stack[:, 0])
    if kind == torch.float32 or rows.dtype == torch.float64:  # in fp64 narrow rows add up without rounding as they are
        origin = stack[:, 0].clone()
        stack -= origin[:, None]
    total = torch.zeros_like(origin, dtype=torch.float64)
    for part in stack.split(SUMMED, dim=1):
        total += times(part.new_ones(len(part), 1, part.shape[1]), part)[:, 0]
    shift = total / len(rows)
    stack -= shift[:, None].to(kind)
    return stack, origin + shift


class Means(NamedTuple):
    """Means in fp64, [layer, d] each."""

    defecting: Float[Tensor, "layer d"]
    other: Float[Tensor, "layer d"]
    all: Float[Tensor, "layer d"]


def class_means(rows: Float[Tensor, "n layer d"], marks: Bool[Tensor, "n"]) -> Means:
    """Means of the defecting rows, the others and both, in fp64 whatever the rows' dtype (PITFALLS 14)."""
    indicators = torch.stack([marks, ~marks]).double()
    defecting, other = weighted_sums(rows, indicators)
    counts = indicators.sum(dim=1)
    # Divided last, so that equal rows have exactly one mean (PITFALLS 16).
    return Means(defecting / counts[0], other / counts[1], (defecting + other) / len(rows))


def weighted_sums(rows: Float[Tensor, "n layer d"], weights: Float[Tensor, "k n"]) -> Float[Tensor, "k layer d"]:
    """Sums over rows in fp64: of their distances from the first one, in one pass that copies a block at a time.

    Distances of narrow rows are fp32, as in `centred`, and are summed in it within a block.
    """
    flat = rows.flatten(1)
    kind = torch.promote_types(rows.dtype, torch.float32)
    origin, shares = flat[0].to(kind), weights.to(kind)
    total = weights.sum(dim=1)[:, None] * origin.double()
    width = max(1, min(flat.shape[1], COLUMNS)) if not rows.is_cuda else flat.shape[1]
    height = min(SUMMED, max(1, AT_ONCE // width)) if not rows.is_cuda else SUMMED
    for left in range(0, flat.shape[1], width):
        columns = slice(left, left + width)
        for top in range(0, len(flat), height):
            part = flat[top : top + height, columns].to(kind) - origin[columns]
            total[:, columns] += times(shares[:, top : top + height], part)
    return total.view(len(weights), *rows.shape[1:])
