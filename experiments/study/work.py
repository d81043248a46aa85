"""Many processes, one study: each takes the next task whose folder nobody has locked, until none is left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.stores.locking import Busy, admitted

Say = Callable[[str], None]
PAUSE = 1.0
"""Seconds between two looks at what others are doing."""


@dataclass(frozen=True)
class Task:
    """A piece of work that leaves files behind, by which anybody can see that it is done."""

    name: str
    folder: Path
    """Whoever works on the task holds this folder's lock."""
    is_done: Callable[[], bool]
    is_ready: Callable[[], bool]
    """Whether everything it builds on is there."""
    run: Callable[[], None]


def work_off(tasks: Sequence[Task], say: Say, pause: float = PAUSE) -> None:
    """Do what is not done, in order as far as others leave it; return when everything is.

    A process that is killed drops its locks, so that another takes its task and continues from the files it left.
    Raises DefectionError when a task fails, or when no task that is left can ever become ready.
    """
    told = False
    while left := [task for task in tasks if not task.is_done()]:
        ready = [task for task in left if task.is_ready()]
        if any(_ran(task, say) for task in ready):  # the first that is free; the others may have changed by then
            told = False
            continue
        if not ready and not any(task.is_done() or task.is_ready() for task in left):
            raise DefectionError(f"{left[0].name} waits for something that no task provides")
        if not told:
            say(f"waiting for other processes ({len(left)} tasks left)")
        told = True
        time.sleep(pause)


def _ran(task: Task, say: Say) -> bool:
    """Whether the task was free, and is done now."""
    try:
        with admitted(task.folder, alone=True):
            if not task.is_done():
                say(task.name)
                task.run()
            return True
    except Busy:
        return False


@contextlib.contextmanager
def held(folder: Path, pause: float = PAUSE) -> Iterator[None]:
    """Wait until the folder is free, and be its only user."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(admitted(folder, alone=True))
                break
            except Busy:
                time.sleep(pause)
        yield
