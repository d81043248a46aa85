"""Strings a lot at a time: what was computed of a lot is kept, and between two lots the clock is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ..run.journal import Journal

AT_ONCE = 256
"""Strings that are put before prompts between two looks at the clock."""


def in_lots(
    strings: Sequence[str],
    measured: Callable[[Sequence[str]], Json],
    journal: Journal,
    name: Json,
    what: str,
    goes_on: Callable[[], bool],
    size: int = AT_ONCE,
) -> Iterator[tuple[list[str], Json]]:
    """Each lot with what `measured` makes of it, as far as `goes_on` lets it come; what the journal knows is free.

    A lot is called in the journal by its strings, by `what`, which stands before the bar, and by `name`, which holds
    all else that the figures rest on.
    """
    if not strings:
        return
    with progress(what, total=len(strings), unit="strings") as advance:
        for start in range(0, len(strings), size):
            some = list(strings[start : start + size])
            lot = name | {"what": what, "strings": some}
            if not journal.knows(lot) and not goes_on():
                return
            yield some, journal.kept(lot, partial(measured, some))
            advance(len(some))
