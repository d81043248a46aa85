"""Several stores as one, and some rows of them, without copying a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from ..basics.errors import DefectionError
from ..basics.shown import shortened
from ..prompts.prompts import Prompt
from .batches import LastShard, VectorRows, Vectors
from .store import Store

if TYPE_CHECKING:
    from ..reading.residuals import Residuals

Place = tuple[int, int]
"""Which store, and which of its rows."""


@dataclass(frozen=True)
class View(VectorRows):
    """Rows of one or more stores that hold the same kind of vector. It is read like a store.

    Examples:
        >>> store = cache(model, prompts, folder / "viewed")
        >>> len(concatenate(store).select([0, 2]))
        2
    """

    stores: tuple[Store, ...]
    """What the rows are taken from."""
    places: Sequence[Place]
    """Of each row the number of its store, and its own number there."""

    __repr__ = shortened

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.places)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers held, ascending."""
        return self.stores[0].layers

    @property
    def ids(self) -> tuple[str, ...]:
        """The prompts' ids, in row order; ids of two stores may repeat."""
        return tuple(self.stores[store].ids[row] for store, row in self.places)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, in row order."""
        return tuple(self.stores[store].prompts[row] for store, row in self.places)

    def select(self, rows: Sequence[int]) -> View:
        """Some of the rows, in the order given.

        Args:
            rows: Row numbers of this view, counted from 0.

        Raises:
            DefectionError: For one that is not there.
        """
        outside = [row for row in rows if not 0 <= row < len(self)]
        if outside:
            raise DefectionError(f"there is no row {outside[0]}: this view has rows 0 to {len(self) - 1}")
        return replace(self, places=[self.places[row] for row in rows])

    def gather(self, layers: Sequence[int] | None, rows: Sequence[int], last: LastShard | None = None) -> Vectors:
        """See `VectorRows`."""
        places = self.select(rows).places
        found = [
            self.stores[store].gather(layers, _run([row for _, row in run]), last)
            for store, run in groupby(places, key=lambda place: place[0])
        ] or [self.stores[0].vectors(layers, [])]
        counts = [part.offsets.diff() for part in found]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
        values = found[0].values if len(found) == 1 else torch.cat([part.values for part in found])
        return Vectors(values, offsets, rows)

    def read(self, layers: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> Residuals:
        """Like `Store.read`: fp32.

        Args:
            layers: Layer numbers; None: all that are held.
            rows: Row numbers, counted from 0; None: all.
        """
        places = self.select(range(len(self)) if rows is None else rows).places
        like, found = self.stores[0].read(layers, []), self.vectors(layers, rows)
        return replace(
            like,
            values=found.values.float(),
            prompts=tuple(self.stores[store].prompts[row] for store, row in places),
            n_tokens=tuple(self.stores[store].n_tokens[row] for store, row in places),
            offsets=None if like.offsets is None else tuple(found.offsets.tolist()),
        )


def _run(rows: list[int]) -> Sequence[int]:
    """A range where the rows follow one another."""
    whole = range(rows[0], rows[0] + len(rows))
    return whole if rows == list(whole) else rows


def concatenate(*sources: Store | View) -> View:
    """Stores, or views of them, one after the other; of a single store, a view that rows can be selected from.

    Args:
        *sources: In the order of the rows; at least one.

    Raises:
        DefectionError: When they differ in anything that makes their vectors incomparable, saying in what.

    Examples:
        >>> one, other = cache(model, prompts[:2], folder / "a"), cache(model, prompts[2:], folder / "b")
        >>> concatenate(one, other).read().ids
        ('p0', 'p1', 'p2', 'p3')
    """
    if not sources:
        raise DefectionError("there is nothing to concatenate; give at least one store")
    views = [
        source if isinstance(source, View) else View((source,), [(0, row) for row in range(len(source))])
        for source in sources
    ]
    stores: list[Store] = []
    places: list[Place] = []
    for view in views:
        for store in view.stores:
            refuse_mixture(views[0].stores[0], store)
        places += [(len(stores) + store, row) for store, row in view.places]
        stores += view.stores
    return View(tuple(stores), places)


def refuse_mixture(one: Store, other: Store) -> None:
    """DefectionError that says in what the vectors of two stores differ, if they do."""
    first, second = _kind(one), _kind(other)
    differs = [name for name in first if first[name] != second[name]]
    if differs:
        raise DefectionError(
            f"{one.path} and {other.path} hold vectors of different {', '.join(differs)}, which must not be mixed; "
            "cache both in the same way"
        )


def _kind(store: Store) -> dict[str, object]:
    head = store.manifest
    return {
        "model": head["model"]["fingerprint"],
        "chat template or tokenizer": head["model"]["template"],
        "date in the chat template": head["model"].get("date"),
        "layers": head["layers"],
        "site": store.site,
        "position": store.position,
        "dtype": head["dtype"],
        "dtype of the forward pass": head["computed_in"],
    }
