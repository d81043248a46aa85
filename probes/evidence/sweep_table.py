"""The tidy table that a sweep is: what its columns mean, and the files it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...activations.basics.frames import Table
from ...activations.basics.tables import read_rows, write_rows
from .scorer import NOTHING, Figures


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepRow(Figures):
    """One model × probe × contrast set × layer × test set. `layer` is a number, or "14-22" for a band."""

    model: str
    probe: str
    contrast: str
    saw: str
    layer: int | str
    test_set: str
    is_preregistered_layer: bool = False
    is_best_layer: bool = False
    """The highest of the probe's layers on this very set: chosen after the labels were read, so no evidence."""
    p_best_layer: float = NOTHING
    """At the best layer: share of shuffles of the test labels within topics whose own best layer is as high."""
    null_best_high: float = NOTHING
    """At the best layer: 97.5% of random directions, one a layer, have a best layer below this."""


def band_name(layers: Sequence[int]) -> int | str:
    """A single layer's number, "14-22" for a contiguous band, "3,7" for another."""
    if len(layers) == 1:
        return layers[0]
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous else ",".join(map(str, layers))


def write_sweep(rows: Sequence[SweepRow], folder: Path, about: Mapping[str, object]) -> None:
    """`sweep.json` and the same table as `sweep.csv`. What is not a number (no null band, say) is null or empty."""
    write_rows(folder / "sweep.json", SweepRow, rows, about)


def read_sweep(folder: Path) -> Table[SweepRow]:
    """The rows of a `sweep.json`."""
    return Table(read_rows(folder / "sweep.json", SweepRow))
