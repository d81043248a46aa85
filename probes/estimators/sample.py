"""What an estimator's solve is handed: rows and what is known of each, as tensors on one device, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .guard import Evidence, lacking
from .solving.products import times

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 2 * 2**30}
"""Layers are solved together while an fp64 copy of each kind of rows fits into so much: a cache, a GPU's memory."""
AT_ONCE = 2**18
"""Numbers summed at a time: a megabyte of fp32, so that they stay in the cache and cost no fresh memory."""
SUMMED = 256
"""fp32 numbers added up before the sum is carried on in fp64."""
COLUMNS = 2**15
"""As many of them side by side: memory is read in long sweeps, and sums are short."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows whose label nobody knows, [row, layer, d] each in the dtype they came in: what a monitor is fitted on."""

    clean: Float[Tensor, "clean layer d"] | None = None
    traffic: Float[Tensor, "traffic layer d"] | None = None
    clean_groups: Int[Tensor, "clean"] | None = None
    """The topic of each clean row; None: each row is one of its own."""
    clean_nuisance: Float[Tensor, "clean k2"] | None = None
    """What the scores must not depend on, as numbers a clean row."""
    part_of: tuple[Self, slice] | None = field(init=False, default=None, repr=False)
    """The sample whose layers these are some of; with other rows in their place it is a whole one again."""

    @property
    def values(self) -> dict[str, Tensor]:
        """The rows of every kind that is there, by the name of their field."""
        return {name: rows for name in ("rows", "clean", "traffic") if (rows := getattr(self, name, None)) is not None}

    @property
    def n_layers(self) -> int:
        """How many layers the rows have."""
        return next(iter(self.values.values())).shape[1]

    @property
    def coarse(self) -> bool:
        """Whether no row came in fp64, so that products may be taken in fp32 before they are polished."""
        return all(rows.dtype != torch.float64 for rows in self.values.values())

    def clean_for(self, name: str) -> Float[Tensor, "clean layer d"]:
        """The clean rows; DefectionError that a probe of this name needs some."""
        if self.clean is None:
            raise lacking(name, Evidence.CLEAN)
        return self.clean

    def traffic_for(self, name: str) -> Float[Tensor, "traffic layer d"]:
        """The traffic; DefectionError that a probe of this name needs some."""
        if self.traffic is None:
            raise lacking(name, Evidence.TRAFFIC)
        return self.traffic

    def labelled_for(self, name: str) -> Labelled:
        """The sample with its labelled rows; DefectionError that a probe of this name needs some."""
        raise lacking(name, Evidence.CONTRAST)

    def restricted(self, sees: Set[Evidence]) -> Sample:
        """Without the rows that an estimator does not declare to see: what it is not handed it cannot use."""
        kept = self
        if Evidence.CLEAN not in sees:
            kept = replace(kept, clean=None, clean_nuisance=None, clean_groups=None)
        return kept if Evidence.TRAFFIC in sees else replace(kept, traffic=None)

    def with_clean(self, rows: Int[Tensor, "kept"]) -> Self:
        """The same sample with these of its clean rows alone."""
        cut = {
            name: values[rows.to(values.device)]
            for name in ("clean", "clean_nuisance", "clean_groups")
            if (values := getattr(self, name)) is not None
        }
        return replace(self, **cut)

    def at_layers(self, layers: slice | list[int]) -> Self:
        """The same rows at some of their layers, as columns."""
        cut: dict[str, Any] = {name: rows[:, layers] for name, rows in self.values.items()}
        return replace(self, **cut)

    def chunks(self) -> Iterator[Self]:
        """Consecutive layers, as many at a time as fit into memory in fp64."""
        values = list(self.values.values())
        bytes_per_layer = max(8 * rows.shape[0] * rows.shape[2] for rows in values)
        step = max(1, CHUNK_BYTES.get(values[0].device.type, CHUNK_BYTES["cpu"]) // max(1, bytes_per_layer))
        for start in range(0, self.n_layers, step):
            layers = slice(start, start + step)
            chunk = self.at_layers(layers)
            object.__setattr__(chunk, "part_of", (self, layers))
            yield chunk


@dataclass(frozen=True, kw_only=True)
class Labelled(Sample):
    """Contrast texts or labelled rows, beside what else there is: what a supervised probe is fitted on."""

    rows: Float[Tensor, "n layer d"]
    marks: Bool[Tensor, "n"]
    """Which rows are the defecting ones."""
    groups: Int[Tensor, "n"] | None = None
    """The topic of each row, as a number."""
    pairs: Int[Tensor, "pair 2"] | None = None
    """Row numbers of the two answers to one question, ordered by answer word and never by which one defects."""
    nuisance: Float[Tensor, "n k"] | None = None
    """What the scores must not depend on, as numbers a row."""

    def labelled_for(self, name: str) -> Labelled:
        """The sample itself."""
        return self

    def restricted(self, sees: Set[Evidence]) -> Sample:
        """Without the rows that an estimator does not declare to see."""
        if sees & {Evidence.CONTRAST, Evidence.LABELLED}:
            return super().restricted(sees)
        unlabelled = ("clean", "traffic", "clean_groups", "clean_nuisance")
        return Sample(**{name: getattr(self, name) for name in unlabelled}).restricted(sees)

    def with_clean(self, rows: Int[Tensor, "kept"]) -> Self:
        """The same sample with these of its clean rows alone, and the means of its own."""
        part = super().with_clean(rows)
        vars(part)["means"] = self.means
        return part

    @cached_property
    def means(self) -> Means:
        """Means of the defecting rows, the others and both: of all layers of a whole sample in one pass."""
        if self.part_of is not None:
            whole, layers = self.part_of
            return Means(*(mean[layers] for mean in whole.means))
        return class_means(self.rows, self.marks)


def stacked(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "layer n d"]:
    """Layers first, in fp64: one matrix a layer, ready for batched linear algebra."""
    return rows.transpose(0, 1).to(torch.float64, memory_format=torch.contiguous_format, copy=True)


def centred(
    rows: Float[Tensor, "n layer d"], *, coarse: bool = False
) -> tuple[Float[Tensor, "layer n d"], Float[Tensor, "layer d"]]:
    """Stacked rows minus their mean, and the mean in fp64; with `coarse` narrow rows stay fp32.

    Rows are measured from the first one before their mean is taken: equal rows give exact zeros, and
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
    """Means of the defecting rows, the others and both, in fp64 whatever the rows' dtype."""
    indicators = torch.stack([marks, ~marks]).double()
    defecting, other = weighted_sums(rows, indicators)
    counts = indicators.sum(dim=1)
    # Divided last, so that equal rows have exactly one mean.
    return Means(defecting / counts[0], other / counts[1], (defecting + other) / len(rows))


def mean_of(rows: Float[Tensor, "n layer d"]) -> Float[Tensor, "layer d"]:
    """Mean of all rows, in fp64."""
    return weighted_sums(rows, rows.new_full((1, len(rows)), 1 / len(rows), dtype=torch.float64))[0]


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


def span(rows: Float[Tensor, "layer n d"]) -> Float[Tensor, "layer k d"]:
    """An orthonormal basis of at most min(n, d) vectors that holds every row."""
    n, d = rows.shape[1:]
    if n >= d:
        return torch.eye(d, dtype=rows.dtype, device=rows.device).expand(len(rows), d, d)
    basis: Tensor = torch.linalg.qr(rows.mT).Q.mT
    return basis
