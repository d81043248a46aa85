"""Candidate strings in order: all before a few prompts, the best before more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from ...activations.basics.files import Json
from ..run.journal import Journal
from .looks import Look, Looker
from .lots import in_lots

RANKERS: dict[str, Callable[[Look], float | None]] = {
    "consensus": lambda look: look.consensus,
    "divergence": lambda look: look.divergence,
    "agreement": lambda look: -look.disagreement,
    "entropy": lambda look: -look.entropy,
    "probe": lambda look: look.probe,
    "convergence": lambda look: look.convergence,
    "attention": lambda look: look.attention,
}
"""By what strings can be ordered, the largest first."""


def looks(
    looker: Looker,
    strings: Sequence[str],
    journal: Journal,
    what: str,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[Look]:
    """Each string, as far as `goes_on` lets it come; what the journal knows costs nothing."""

    def looked_at(some: Sequence[str]) -> Json:
        return {"looks": [asdict(look) for look in looker.look(some)]}

    lots = in_lots(strings, looked_at, journal, looker.name, what, goes_on)
    return [Look(**look) for _, kept in lots for look in kept["looks"]]


def best(found: Sequence[Look], count: int) -> list[str]:
    """Half of them the first by consensus, the others the first by each of the other rankers in turn."""
    orders = {name: ordered(found, name) for name in RANKERS}
    chosen = dict.fromkeys(look.string for look in orders.pop("consensus")[: count - count // 2])
    for row in zip(*(order for order in orders.values() if order), strict=True):
        if len(chosen) >= count:
            break
        chosen |= dict.fromkeys(look.string for look in row)
    return list(chosen)[:count]


def ordered(found: Sequence[Look], name: str) -> list[Look]:
    """By one ranker; empty where it was not asked."""
    by = RANKERS[name]
    known = [(value, look) for look in found if (value := by(look)) is not None]
    return [look for _, look in sorted(known, key=lambda pair: -pair[0])]


def ranks(found: Sequence[Look], strings: Sequence[str]) -> dict[str, dict[str, int]]:
    """The place of each string, from 1, in the order of each ranker that was asked."""
    table: dict[str, dict[str, int]] = {string: {} for string in strings}
    for name in RANKERS:
        for place, look in enumerate(ordered(found, name), start=1):
            if look.string in table:
                table[look.string][name] = place
    return table


def finalists(found: Sequence[Look], count: int) -> list[str]:
    """Half of them the first by consensus, the others those that the prompts agree on most."""
    some = [*ordered(found, "consensus")[: count - count // 2], *ordered(found, "agreement")]
    return list(dict.fromkeys(look.string for look in some))[:count]
