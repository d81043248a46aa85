"""Tidy tables on disk: a row a figure, as CSV, and as JSON that also says what the rows are of."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DefectionError
from .files import Json, read_json, write_bytes, write_json
from .frames import Table, read_parquet

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TABLE_SCHEMA = 1


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows below a head line: `columns`, or every key of the rows in the order of its first appearance.

    A `path` that ends in `.gz` is compressed; equal rows give equal bytes.
    """
    text = io.StringIO()
    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8")
    write_bytes(path, (gzip.compress(content, mtime=0) if path.suffix == ".gz" else content,))


def read_table(path: str | Path) -> Table[dict[str, Any]]:
    """A table that this toolkit wrote, whichever of its files is named: JSON, CSV (compressed or not) or Parquet.

    Args:
        path: `sweep.json`, `sweep.csv`, `cells.csv.gz`, `comparison.json`, …

    What is not a number is NaN or None, as the file has it.
    Raises DefectionError for a file that is missing or holds no table.

    Examples:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "table.csv"
        >>> write_csv(path, [{"layer": 0, "auroc": 0.5}])
        >>> read_table(path)
        <Table of 1 rows: layer, auroc>
    """
    path = Path(path)
    if path.suffix == ".json":
        record = read_json(path)
        if not isinstance(record.get("rows"), list):
            raise DefectionError(f"{path} holds no table: it has no rows")
        return Table(read_rows(path))
    if not path.exists() and not path.with_name(f"{path.name}.gz").exists():
        raise DefectionError(f"{path} does not exist")
    if path.suffix == ".parquet":
        return Table(read_parquet(path))
    return Table(read_csv(path))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file: numbers and truth values come back as such, an empty field as None.

    Where `path` with `.gz` behind its name is there, it is read in its place.
    """
    packed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    rows = csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
    return [{key: _parsed(value) for key, value in row.items()} for row in rows]


def _parsed(text: str) -> Any:
    if text == "":
        return None
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def write_rows(
    path: Path, kind: type[DataclassInstance], rows: Sequence[DataclassInstance], about: Mapping[str, Any]
) -> Json:
    """Write dataclasses of one `kind` as the JSON file `path` and the CSV beside it; give what the former holds.

    What is not a number is null in the one and empty in the other. A kind's own fields come before inherited ones.
    """
    names = sorted((field.name for field in fields(kind)), key=lambda name: name not in kind.__annotations__)
    cleaned = [
        {name: None if isinstance(v := getattr(row, name), float) and not math.isfinite(v) else v for name in names}
        for row in rows
    ]
    record = {"schema_version": TABLE_SCHEMA, **about, "rows": cleaned}
    write_json(path, record)
    write_csv(path.with_suffix(".csv"), cleaned, names)
    return record


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of such a JSON file, null as NaN; DefectionError for another schema version."""
    record = read_json(path)
    if record.get("schema_version") != TABLE_SCHEMA:
        raise DefectionError(f"{path} has schema version {record.get('schema_version')!r}")
    rows: list[dict[str, Any]] = record["rows"]
    for row in rows:
        row.update({name: float("nan") for name, value in row.items() if value is None})
    return rows
