"""Tidy tables on disk: a row a figure, as CSV, and as JSON that also says what the rows are of."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args, get_type_hints

from .errors import DefectionError
from .files import Json, read_json, readable, write_bytes, write_json
from .frames import Table
from .rows import decoded, parquet_rows, separated_rows, unpacked
from .typed import typed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TABLE_SCHEMA = 1
Row = TypeVar("Row")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
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


def read_table(path: str | Path) -> Table[Json]:
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
        return Table([{name: _or_nan(value) for name, value in row.items()} for row in _json_rows(path)])
    packed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if packed.exists() and not (path.exists() and path != packed):
        return Table(_csv_rows(unpacked(_content(packed), packed), packed))
    return Table(
        parquet_rows(_content(path), str(path)) if path.suffix == ".parquet" else _csv_rows(_content(path), path)
    )


def _content(path: Path) -> bytes:
    with readable(path):
        return path.read_bytes()


def _csv_rows(content: bytes, path: Path) -> list[Json]:
    """Numbers and truth values come back as such, an empty field as None."""
    rows = list(separated_rows(decoded(content, str(path)), str(path)))
    for number, row in enumerate(rows, start=1):
        if None in row.values():
            raise DefectionError(f"{path} row {number} has fewer cells than the first line has names: it was cut off")
    return [{key: _parsed(str(value)) for key, value in row.items()} for row in rows]


def _parsed(text: str) -> object:
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
    path: Path, kind: type[DataclassInstance], rows: Sequence[DataclassInstance], about: Mapping[str, object]
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


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of such a JSON file, null as NaN.

    Raises DefectionError for another schema version, and a row that is none of this kind.
    """
    numbers = {name for name, hint in get_type_hints(kind).items() if float in (hint, *get_args(hint))}
    found = []
    for number, row in enumerate(_json_rows(path), start=1):
        told = {name: _or_nan(value) if name in numbers else value for name, value in row.items()}
        found.append(typed(told, kind, f"{path} row {number}"))
    return found


def _json_rows(path: Path) -> list[Json]:
    record = read_json(path)
    if not isinstance(record.get("rows"), list):
        raise DefectionError(f"{path} holds no table: it has no rows")
    if record.get("schema_version") != TABLE_SCHEMA:
        raise DefectionError(f"{path} has schema version {record.get('schema_version')!r:.80}")
    rows: list[Json] = typed(record["rows"], list[Json], str(path))
    return rows


def _or_nan(value: object) -> object:
    return math.nan if value is None else value
