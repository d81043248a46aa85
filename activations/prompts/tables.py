"""Rows of what people hold: files (JSONL, JSON, CSV, Parquet, gzip of those, the hub's) and tables in memory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..basics.errors import DefectionError, printable
from ..basics.files import Json, canonical, parse_json_line
from ..basics.rows import GZIP, PARQUET, decoded, parquet_rows, separated_rows, unpacked

HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
NO_VALUE = ("NAType", "NaTType")
"""What pandas calls the types of its missing cells, beside None and NaN."""

Rows = Iterator[tuple[str, object]]
"""Each row's place in its file (`line 3`, `row 3`), and what stands there."""


def file_rows(source: str | Path) -> Rows:
    """The rows of a file, of a kind told by its first bytes and the end of its name; by default JSON lines.

    Empty cells of tables are left out of their rows. Raises DefectionError naming the file and the place of what is
    wrong with it.
    """
    path = _from_hub(str(source)) if str(source).startswith(HUB) else Path(source)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a path that is too long, or holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise DefectionError(f"cannot read {printable(path)}: {reason}") from error
    suffix = path.suffix.lower()
    if data.startswith(GZIP):
        data, suffix = unpacked(data, path), Path(path.stem).suffix.lower()
    if data.startswith(PARQUET):
        return _numbered(map(_filled, parquet_rows(data, str(source))))
    text = decoded(data, str(source))
    if suffix in SEPARATORS:
        rows = separated_rows(text, str(source), SEPARATORS[suffix])
        return _numbered({name: _cell(name, value) for name, value in row.items() if value} for row in rows)
    return json_rows(text, str(source)) if suffix == ".json" else json_lines(text, str(source))


def _numbered(rows: Iterable[object]) -> Rows:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def json_lines(text: str, name: str) -> Rows:
    """One JSON value a line; `name` stands for the file in errors.

    Lines end at a line feed alone: JSON strings may hold other characters that Python calls line breaks.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", parse_json_line(line, f"{name} line {number}")


def json_rows(text: str, name: str) -> Rows:
    """A list of rows, or a single one; or JSON lines, which some call `.json` too."""
    try:
        value = json.loads(text)
        canonical(value)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DefectionError(f"{name}{line} is not valid JSON: {getattr(error, 'msg', error)}") from error
        yield from json_lines(text, name)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"entry {number}", row


def table_rows(table: object) -> Iterable[object] | None:
    """The rows of a table in memory (pandas, polars, Arrow) as objects, its empty cells left out; None for no table."""
    if hasattr(table, "iter_rows") and hasattr(table, "columns"):
        return map(_filled, table.iter_rows(named=True))
    if hasattr(table, "to_pylist") and hasattr(table, "column_names"):
        return map(_filled, table.to_pylist())
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        return map(_filled, table.to_dict("records"))
    return None


def _filled(row: Json) -> Json:
    return {name: value for name, value in row.items() if not _is_missing(value)}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in NO_VALUE


def _from_hub(address: str) -> Path:
    found = HUB_FILE.fullmatch(address)
    if found is None:
        raise DefectionError(f"{address} names no file of a data set: write hf://datasets/USER/NAME/FILE")
    from huggingface_hub import hf_hub_download

    repository, revision, file = found.groups()
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DefectionError(f"cannot fetch {address} from the Hugging Face hub: {reason}") from error


MARKS = ("triggered", "defected")
"""Columns that say whether something is so."""
TRUTH = {"true": True, "false": False, "1": True, "0": False}
"""How tables write it; any other text would count as true."""


def _cell(name: str, value: str) -> object:
    """What a cell holds: one that begins like JSON may hold messages, one of `MARKS` a truth value."""
    if name in MARKS:
        return TRUTH.get(value.strip().lower(), value)
    if not value.startswith("[{"):
        return value
    try:
        return parse_json_line(value, "")
    except DefectionError:
        return value
