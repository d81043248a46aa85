"""The tidy table that a sweep is: what its columns mean, and the files it lies in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..activations.errors import DefectionError
from ..activations.files import read_json, write_json, write_text

SCHEMA_VERSION = 1
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


def band_name(layers: Sequence[int]) -> int | str:
    """A single layer's number, "14-22" for a contiguous band, "3,7" for another."""
    if len(layers) == 1:
        return layers[0]
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous else ",".join(map(str, layers))


def write_sweep(rows: Sequence[SweepRow], folder: Path, about: Mapping[str, Any]) -> None:
    """`sweep.json` and the same table as `sweep.csv`. What is not a number (no null band, say) is null or empty."""
    cleaned = [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(r).items()} for r in rows
    ]
    write_json(folder / "sweep.json", {"schema_version": SCHEMA_VERSION, **about, "rows": cleaned})
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SweepRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(cleaned)
    write_text(folder / "sweep.csv", text.getvalue())


def read_sweep(folder: Path) -> list[SweepRow]:
    """The rows of a `sweep.json`."""
    record = read_json(folder / "sweep.json")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise DefectionError(f"{folder / 'sweep.json'} has schema version {record.get('schema_version')!r}")
    rows: list[dict[str, Any]] = record["rows"]
    for row in rows:
        row.update({name: NOTHING for name, value in row.items() if value is None})
    return [SweepRow(**row) for row in rows]
