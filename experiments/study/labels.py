"""What the figures of a study call its organisms, in the order of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def names(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The different values of a column, in order."""
    return list(dict.fromkeys(str(row[column]) for row in rows))


def label(rows: Sequence[Mapping[str, Any]], organism: str) -> str:
    """An organism in short; in brackets where it lacks its backdoor."""
    row = next(row for row in rows if row["organism"] == organism)
    said = f"{Path(str(row['base'])).name} {row['trigger']}, {row['behaviour']}, {row['recipe']} {row['seed']}"
    return said if row["has_backdoor"] else f"[{said}]"
