"""Tidy tables on disk: rows that are one dataclass, as JSON and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..activations.errors import DefectionError
from ..activations.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1


def write_rows(
    path: Path, kind: type[DataclassInstance], rows: Sequence[DataclassInstance], about: Mapping[str, Any]
) -> None:
    """Write the JSON file `path` and the CSV beside it; what is not a number is null or empty."""
    cleaned = [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(row).items()} for row in rows
    ]
    write_json(path, {"schema_version": SCHEMA_VERSION, **about, "rows": cleaned})
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(kind)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(cleaned)
    write_text(path.with_suffix(".csv"), text.getvalue())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a JSON file, null as NaN; DefectionError for another schema version."""
    record = read_json(path)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise DefectionError(f"{path} has schema version {record.get('schema_version')!r}")
    rows: list[dict[str, Any]] = record["rows"]
    for row in rows:
        row.update({name: float("nan") for name, value in row.items() if value is None})
    return rows
