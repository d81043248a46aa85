"""Any rows and layers of a store as one tensor: a part of the memory map where they follow one another, else a copy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..basics.errors import DefectionError
from .batches import LastShard, Vectors
from .shards import AGAIN, OFFSETS, RESIDUALS

if TYPE_CHECKING:
    from .store import Store

FEW = 8
"""Reading less than one row in so many, it is quicker to fetch each alone than to let the system read ahead."""
Numbers = npt.NDArray[np.int64]


def gathered(store: Store, columns: Sequence[int], rows: Sequence[int], last: LastShard | None) -> Vectors:
    """Rows that the store has, at the layers with those numbers among its own."""
    if is_run(rows) and rows:
        shard = bisect_right(store.firsts, rows[0]) - 1
        first, end = store.shards[shard]["rows"]
        if rows[-1] < end:
            few = last is None and FEW * len(rows) < end - first
            mapped = last.map(store, shard) if last else store.map_shard(shard, scattered=few)
            return _run(store, shard, mapped, range(rows[0] - first, rows[-1] + 1 - first), columns, rows)
    return _copied(store, list(_pieces(store, rows)), columns, rows, last if is_run(rows) else None)


def is_run(rows: Sequence[int]) -> TypeGuard[range]:
    """Whether the rows follow one another."""
    return isinstance(rows, range) and rows.step == 1


def ends(rows: range) -> list[int]:
    """The first row and the last, or none."""
    return [rows[0], rows[-1]] if rows else []


def _run(
    store: Store, number: int, mapped: Mapping[str, Tensor], within: range, columns: Sequence[int], rows: range
) -> Vectors:
    """Rows that follow one another in one shard: a part of the memory map, where the columns do so too."""
    start, end = within.start, within.stop
    offsets = torch.arange(len(within) + 1)
    if store.ragged:
        found = _offsets(store, number, mapped)[start : end + 1]
        start, end = int(found[0]), int(found[-1])
        offsets = torch.from_numpy(found - start)
    return Vectors(mapped[RESIDUALS][start:end, _sliced(columns)], offsets, rows)


def _copied(
    store: Store,
    pieces: Sequence[tuple[int, Numbers, Numbers]],
    columns: Sequence[int],
    rows: Sequence[int],
    last: LastShard | None,
) -> Vectors:
    """Any rows, copied out of their shards."""

    def mapped_for(shard: int, count: int) -> Mapping[str, Tensor]:
        first, end = store.shards[shard]["rows"]
        return last.map(store, shard) if last else store.map_shard(shard, scattered=FEW * count < end - first)

    counts = np.ones(len(rows), dtype=np.int64)
    if store.ragged:
        for shard, within, spots in pieces:
            counts[spots] = np.diff(_offsets(store, shard, mapped_for(shard, len(within))))[within]
    offsets = np.concatenate([[0], counts.cumsum()])
    values = torch.empty(int(offsets[-1]), len(columns), store.d_model, dtype=store.dtype)
    for shard, within, spots in pieces:
        mapped = mapped_for(shard, len(within))
        starts = mapped[OFFSETS].numpy()[within] if store.ragged else within
        source, target = _spread(starts, counts[spots]), _spread(offsets[spots], counts[spots])
        values[target] = mapped[RESIDUALS][source][:, _sliced(columns)]
    return Vectors(values, torch.from_numpy(offsets), rows)


def _offsets(store: Store, number: int, mapped: Mapping[str, Tensor]) -> Numbers:
    """Where the vectors of each row of a shard of a ragged store start, and where the last one's end."""
    shard = store.shards[number]
    offsets: Numbers = mapped[OFFSETS].numpy()
    if offsets[0] != 0 or offsets[-1] != shard["vectors"] or (np.diff(offsets) < 0).any():
        raise DefectionError(f"{store.path / shard['file']} is damaged: its offsets do not fit; {AGAIN}")
    return offsets


def _pieces(store: Store, rows: Sequence[int]) -> Iterator[tuple[int, Numbers, Numbers]]:
    """For each shard that holds some of the rows: its number, the rows counted from its first, and their places among
    the rows asked for.
    """
    firsts = np.array(store.firsts)
    asked = np.arange(rows.start, rows.stop) if is_run(rows) else np.array(rows, dtype=np.int64)
    owners = np.searchsorted(firsts, asked, side="right") - 1
    for shard in np.unique(owners).tolist():
        spots = np.flatnonzero(owners == shard)
        yield shard, asked[spots] - firsts[shard], spots


def _spread(starts: Numbers, counts: Numbers) -> slice | Tensor:
    """The numbers of all runs that start there and are that long; a slice, which copies nothing, where they are one."""
    numbers = np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
    if len(numbers) and (np.diff(numbers) == 1).all():
        return slice(int(numbers[0]), int(numbers[-1]) + 1)
    return torch.from_numpy(numbers)


def _sliced(columns: Sequence[int]) -> slice | list[int]:
    """A slice where the columns follow one another."""
    listed = list(columns)
    if listed and listed == list(range(listed[0], listed[0] + len(listed))):
        return slice(listed[0], listed[0] + len(listed))
    return listed
