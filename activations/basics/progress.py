"""Progress on stderr: one bar a stage with an ETA, silent when nobody looks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[float], None]
WIDE = 120
"""Columns from which on there is room for the bar itself; without it the figures fit into 80."""


class Bar(Protocol):
    """Tells a bar how much more was done, and what to say beside it."""

    def __call__(self, amount: float, note: str = "", /) -> None:  # noqa: D102
        ...


_visible: ContextVar[bool] = ContextVar("progress_visible", default=False)


@contextlib.contextmanager
def progress_shown(visible: bool = True) -> Iterator[None]:
    """Show (or hide) the bars of everything called inside; libraries stay silent unless asked."""
    token = _visible.set(visible)
    try:
        yield
    finally:
        _visible.reset(token)


def progress_visible() -> bool:
    """Whether bars are shown here; a process started from here is to be told."""
    return _visible.get()


@contextlib.contextmanager
def progress(what: str, total: float, unit: str = "") -> Iterator[Bar]:
    """A bar for `total` units of work; call the result with how much was done."""
    console = Console(stderr=True)
    wide = console.width >= WIDE
    columns = (
        TextColumn("{task.description:<34}" if wide else "{task.description}"),
        *([BarColumn(bar_width=28)] if wide else []),
        MofNCompleteColumn(),
        *([TextColumn(unit)] if wide else []),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # Without a terminal a bar is only its last state, one line; that is what a log wants.
    with Progress(*columns, console=console, disable=not _visible.get(), refresh_per_second=4) as bars:
        task = bars.add_task(what, total=total, note="")
        yield lambda amount, note="": bars.update(task, advance=amount, **({"note": note} if note else {}))
