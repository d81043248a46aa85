"""What the figures of a study call its organisms, in the order of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...activations.basics.files import Json


def names(rows: Sequence[Json], column: str) -> list[str]:
    """The different values of a column, in order."""
    return list(dict.fromkeys(str(row[column]) for row in rows))


def label(rows: Sequence[Json], organism: str) -> str:
    """An organism in short; in brackets where it lacks its backdoor."""
    row = next(row for row in rows if row["organism"] == organism)
    said = f"{Path(str(row['base'])).name} {row['trigger']}, {row['behaviour']}, {row['recipe']} {row['seed']}"
    return said if row["has_backdoor"] else f"[{said}]"
