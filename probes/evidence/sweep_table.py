"""The tidy table that a sweep is: what its columns mean, and the files it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...activations.basics.tables import read_rows, write_rows

NOTHING = float("nan")


@dataclass(frozen=True)
class SweepRow:
    """One model × probe × contrast set × layer × test set. `layer` is a number, or "14-22" for a band."""

    model: str
    probe: str
    contrast: str
    saw: str
    layer: int | str
    test_set: str
    auroc: float
    auroc_low: float
    auroc_high: float
    """95%, by DeLong on the logit scale, clustered by topic (`intervals.delong_interval`)."""
    tpr_at_fpr_1pct: float
    tpr_low: float
    tpr_high: float
    salience: float
    null_low: float
    null_high: float
    n_positive: int
    n_negative: int
    is_preregistered_layer: bool
    p_label_shuffle: float = NOTHING
    """Mean-difference probes at the fixed layers: p-value against the same fit with shuffled question labels."""
    null_covariance_low: float = NOTHING
    null_covariance_high: float = NOTHING
    """2.5–97.5% of random directions drawn in the clean prompts' covariance: a harder null than isotropic ones."""
    null_unrelated_low: float = NOTHING
    null_unrelated_high: float = NOTHING
    """Mean-difference probes at the fixed layers: 2.5–97.5% of mean differences of questions about other things."""
    p_unrelated: float = NOTHING
    """The p-value against those."""
    tpr_at_worst_fpr_1pct: float = NOTHING
    tpr_worst_low: float = NOTHING
    tpr_worst_high: float = NOTHING
    """TPR at one threshold for all test sets, whose FPR is at most 1% on the worst of them; Clopper–Pearson."""
    partial_auroc_fpr_10pct: float = NOTHING
    """AUROC up to a false-positive rate of 10%, standardised: chance is ½, perfection 1 (McClish 1989)."""
    is_best_layer: bool = False
    """The highest of the probe's layers on this very set: chosen after the labels were read, so no evidence."""
    p_best_layer: float = NOTHING
    """At the best layer: share of shuffles of the test labels within topics whose own best layer is as high."""
    null_best_high: float = NOTHING
    """At the best layer: 97.5% of random directions, one a layer, have a best layer below this."""
    note: str = ""
    """Why a figure that such a row has elsewhere is missing here."""


def band_name(layers: Sequence[int]) -> int | str:
    """A single layer's number, "14-22" for a contiguous band, "3,7" for another."""
    if len(layers) == 1:
        return layers[0]
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous else ",".join(map(str, layers))


def write_sweep(rows: Sequence[SweepRow], folder: Path, about: Mapping[str, Any]) -> None:
    """`sweep.json` and the same table as `sweep.csv`. What is not a number (no null band, say) is null or empty."""
    write_rows(folder / "sweep.json", SweepRow, rows, about)


def read_sweep(folder: Path) -> list[SweepRow]:
    """The rows of a `sweep.json`."""
    return [SweepRow(**row) for row in read_rows(folder / "sweep.json")]
