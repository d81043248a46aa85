"""A tidy table in memory: a list of rows that pandas and Parquet take as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import DefectionError
from .files import Json, written_aside

if TYPE_CHECKING:
    import pandas

Row = TypeVar("Row")
HOW = "install them with `pip install 'defection-probes[tables]'`"


class Table(list[Row]):
    """Rows of one kind, mappings or dataclasses, as a list that also goes to pandas and to Parquet.

    Examples:
        >>> table = Table([{"layer": 0, "auroc": 0.5}, {"layer": 1, "auroc": 0.9}])
        >>> table
        <Table of 2 rows: layer, auroc>
        >>> float(table.to_pandas().auroc.max())
        0.9
    """

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of their first appearance."""
        return list(dict.fromkeys(name for row in self.to_dicts() for name in row))

    def to_dicts(self) -> list[Json]:
        """A dictionary a row, values as they are."""
        return [_mapping(row) for row in self]

    def to_pandas(self) -> pandas.DataFrame:
        """A `pandas.DataFrame` with a row a row; DefectionError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise DefectionError(f"to_pandas needs pandas, to_parquet pyarrow beside it: {HOW}") from error
        return pandas.DataFrame(self.to_dicts(), columns=self.columns)

    def to_parquet(self, path: str | Path) -> Path:
        """Write a Parquet file and give its path.

        A column that holds numbers and words alike (a layer, and a band of them) becomes words there.

        Args:
            path: Of the file; folders on the way are made.

        Raises:
            DefectionError: Where pandas or pyarrow is not installed, for a column that no Parquet file can hold, and
                when the file cannot be written.
        """
        frame = self.to_pandas()
        for name in frame.columns:
            kinds = {type(value) for value in frame[name]}
            if str in kinds and kinds - {str}:
                frame[name] = frame[name].astype(str)
            elif kinds & {dict, list, tuple}:
                raise DefectionError(f"column {name!r} holds {_named(kinds)}, which no Parquet column does")
        with written_aside(Path(path)) as aside:
            try:
                frame.to_parquet(aside, engine="pyarrow", index=False)
            except ImportError as error:
                raise DefectionError(f"to_parquet needs pyarrow: {HOW}") from error
        return Path(path)

    def __repr__(self) -> str:
        names = self.columns
        shown = ", ".join(names[:6]) + (f", … ({len(names)} columns)" if len(names) > 6 else "")
        return f"<{type(self).__name__} of {len(self)} rows: {shown}>"


def _mapping(row: object) -> Json:
    if is_dataclass(row) and not isinstance(row, type):
        own = type(row).__annotations__
        names = sorted((field.name for field in fields(row)), key=lambda name: name not in own)
        return {name: getattr(row, name) for name in names}
    if isinstance(row, Mapping):
        return dict(row)
    raise DefectionError(f"a table's row is a mapping or a dataclass, not a {type(row).__name__}")


def _named(kinds: Iterable[type]) -> str:
    return " and ".join(sorted(kind.__name__ for kind in kinds))
