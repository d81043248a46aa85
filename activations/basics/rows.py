"""Rows out of bytes: CSV and Parquet, compressed or not. What is wrong with a file is said with its place."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from .errors import DefectionError
from .files import Json

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
"""What files of these kinds begin with, whatever their names end with."""
LONGEST_CELL = 1 << 30


def unpacked(data: bytes, path: Path) -> bytes:
    """What a gzip file holds; DefectionError for one that is damaged."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DefectionError(f"{path} is a gzip file that is cut off or damaged: {error}") from error


def decoded(data: bytes, name: str) -> str:
    """Bytes as UTF-8; DefectionError naming the line of the first that are none."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DefectionError(f"{name} line {line} is not UTF-8 text (byte {error.start})") from error


def separated_rows(text: str, name: str, separator: str = ",") -> Iterator[dict[str, str | None]]:
    """The rows of a table as text, whose columns' names stand in its first line; None for a cell that a row lacks."""
    longest = csv.field_size_limit(LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise DefectionError(f"{name} row {number} has more cells than the first line has names")
            yield row
    except csv.Error as error:
        raise DefectionError(f"{name} line {reader.line_num} is not a table's: {error}") from error
    finally:
        csv.field_size_limit(longest)


def parquet_rows(data: bytes, name: str) -> Iterator[Json]:
    """The rows of a Parquet file; DefectionError where it is damaged, or pyarrow is not installed."""
    try:
        from pyarrow import ArrowException, BufferReader
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DefectionError(
            f'{name} is a Parquet file, which pyarrow reads: pip install "defection-probes[tables]"'
        ) from error
    try:
        for batch in ParquetFile(BufferReader(data)).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, OSError, ValueError) as error:  # a time too far for Python is a plain ValueError
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DefectionError(f"{name} is a Parquet file that cannot be read: {reason}") from error
