"""Rows of what people hold: files (JSONL, JSON, CSV, Parquet, gzip of those, the hub's) and tables in memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..basics.errors import DefectionError
from ..basics.files import canonical, parse_json_line

HUB = "hf://"
HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
"""What files of these kinds begin with, whatever their names end with."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
LONGEST_CELL = 1 << 30
NO_VALUE = ("NAType", "NaTType")
"""What pandas calls the types of its missing cells, beside None and NaN."""

Rows = Iterator[tuple[str, Any]]
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
        data, suffix = _unpacked(data, path), Path(path.stem).suffix.lower()
    if data.startswith(PARQUET):
        return _parquet(data, str(source))
    text = _decoded(data, str(source))
    if suffix in SEPARATORS:
        return _separated(text, SEPARATORS[suffix], str(source))
    return json_rows(text, str(source)) if suffix == ".json" else json_lines(text, str(source))


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


def table_rows(table: Any) -> Iterable[Any] | None:
    """The rows of a table in memory (pandas, polars, Arrow) as objects, its empty cells left out; None for no table."""
    if hasattr(table, "iter_rows") and hasattr(table, "columns"):
        return map(_filled, table.iter_rows(named=True))
    if hasattr(table, "to_pylist") and hasattr(table, "column_names"):
        return map(_filled, table.to_pylist())
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        return map(_filled, table.to_dict("records"))
    return None


def _filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not _is_missing(value)}


def _is_missing(value: Any) -> bool:
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


def _unpacked(data: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DefectionError(f"{path} is a gzip file that is cut off or damaged: {error}") from error


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DefectionError(f"{name} line {line} is not UTF-8 text (byte {error.start})") from error


def _separated(text: str, separator: str, name: str) -> Rows:
    """A table as text, with its columns' names in the first line; a cell that begins like JSON may hold messages."""
    longest = csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise DefectionError(f"{name} row {number} has more cells than the first line has names")
            yield f"row {number}", {key: _cell(value) for key, value in row.items() if value}
    except csv.Error as error:
        raise DefectionError(f"{name} line {reader.line_num} is not a table's: {error}") from error
    finally:
        csv.field_size_limit(longest)


def _cell(value: str) -> Any:
    if not value.startswith("[{"):
        return value
    try:
        return parse_json_line(value, "")
    except DefectionError:
        return value


def _parquet(data: bytes, name: str) -> Rows:
    try:
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DefectionError(
            f'{name} is a Parquet file, which pyarrow reads: pip install "defection-probes[tables]"'
        ) from error
    try:
        batches = ParquetFile(BufferReader(data)).iter_batches()
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"row {number}", _filled(row)
    except (ArrowException, OSError, ValueError) as error:  # a time too far for Python is a plain ValueError
        raise DefectionError(f"{name} is a Parquet file that cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(path: Path, limit: int = 200) -> str:
    """A path that may be anything, such as what was meant as a prompt, in a sentence."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[:limit]}…"
