"""Vectors as a store gives them, and all of a store's or a view's, some rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.shown import shortened

if TYPE_CHECKING:
    from .store import Store

BATCH_ROWS = 128
"""Of a batch: some megabytes in fp32, memory that is used again; for larger ones the system hands out fresh pages."""


@dataclass(frozen=True)
class Vectors:
    """Vectors of some rows, in the order of the rows.

    Examples:
        >>> cache(model, prompts, folder / "vectors").vectors(rows=[2, 0]).values.shape
        torch.Size([2, 4, 32])
    """

    values: Float[Tensor, "vector layer d_model"]
    """The vectors of all the rows, row after row."""
    offsets: Int[Tensor, "row+1"]
    """Row `i` owns `values[offsets[i] : offsets[i + 1]]`: one vector each, except in a ragged store."""
    rows: Sequence[int]
    """The rows' numbers in the store or view they come from."""

    __repr__ = shortened


class LastShard:
    """The shard that a reader is in: mapped, and its header looked at, once for all its batches."""

    def __init__(self) -> None:
        self.place: tuple[Path, int] | None = None
        self.tensors: dict[str, Tensor] = {}

    def map(self, store: Store, number: int) -> dict[str, Tensor]:
        """Its tensors, whether it is the one of the last call or another."""
        if self.place != (store.path, number):
            self.place, self.tensors = None, {}  # the old one goes first
            self.tensors = store.map_shard(number)
            self.place = (store.path, number)
        return self.tensors


class VectorRows(ABC):
    """Rows of vectors, read as they are asked for: a store's, or a view's of several."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of prompts."""

    @abstractmethod
    def gather(self, layers: Sequence[int] | None, rows: Sequence[int], last: LastShard | None = None) -> Vectors:
        """What `vectors` gives.

        Args:
            layers: Layer numbers; None: all that are held.
            rows: Row numbers, counted from 0.
            last: The shard opened last, handed from call to call by who reads one run of rows after another.

        Raises:
            DefectionError: As `vectors` does.
        """

    def vectors(self, layers: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> Vectors:
        """Some rows (all by default) at some layers (all), in the store's dtype and in the order asked for.

        Only their pages are read.

        Args:
            layers: Layer numbers; None: all that are held.
            rows: Row numbers, counted from 0; None: all.

        Raises:
            DefectionError: For an unfinished store, an absent layer or row, and a shard that is missing or has another
                header.
        """
        return self.gather(layers, range(len(self)) if rows is None else rows)

    def batches(
        self,
        size: int = BATCH_ROWS,
        *,
        layers: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Iterator[Vectors]:
        """All rows, `size` at a time, on a device: what a fit that streams wants. Memory holds one batch.

        Args:
            size: Prompts at a time.
            layers: Layer numbers; None: all that are held.
            device: Where each batch goes.
            dtype: Of each batch; None: that of the store.

        Raises:
            DefectionError: For a batch of no rows, and as `vectors` does.
        """
        if size < 1:
            raise DefectionError(f"a batch needs at least one row, not {size}")
        last = LastShard()
        for start in range(0, len(self), size):
            # Nothing of a batch is kept here while the next is made: the memory of one serves the other.
            yield _moved(self.gather(layers, range(start, min(start + size, len(self))), last), device, dtype)


def _moved(found: Vectors, device: torch.device | str, dtype: torch.dtype | None) -> Vectors:
    values = found.values.to(device=device, dtype=dtype or found.values.dtype)
    return Vectors(values, found.offsets.to(device), found.rows)
