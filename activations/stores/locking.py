"""Who may write into a store, and where files grow before they get their names.

A process that works alone holds `.lock` for itself. Processes of one launch share it; each then holds the *room* of
what it works on. A room is a folder under `.writing/` with a lock of its own: it belongs to one process at a time, and
what a process that was killed left there is removed by the next one to enter. The system drops locks when a process
dies, however it dies.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..basics.errors import DefectionError

try:
    import fcntl
except ImportError:  # Windows: whoever only reads into memory needs no lock
    fcntl: Any = None  # type: ignore[no-redef]

LOCK = ".lock"
WRITING = ".writing"


@contextlib.contextmanager
def admitted(folder: Path, *, alone: bool) -> Iterator[None]:
    """Be the only writer of `folder`, or one of those that share the work. Who was alone leaves no rooms behind.

    Raises DefectionError, at once, when another process is in the way, when the folder cannot be written, and on a
    system that has no such locks.
    """
    if fcntl is None:
        raise DefectionError(
            "a store on disk needs locks that this system has not (fcntl: Linux, macOS, WSL); read into memory with "
            "capture(…) and keep that with Residuals.save"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")  # noqa: SIM115 (closed below, however this ends)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DefectionError(
                f"another process is writing to {folder}; wait for it or choose another --out"
            ) from error
        try:
            yield
        finally:
            if alone:
                remove_rooms(folder)


@contextlib.contextmanager
def room(folder: Path, name: str) -> Iterator[Path]:
    """Wait until the room is free, and hold it: an empty folder on the store's own file system."""
    place = folder / WRITING / name
    lock = _lock_of(place)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield place


def _lock_of(place: Path) -> IO[str]:
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            return open(place / "lock", "w")
        except FileNotFoundError:
            continue  # a process that had finished the store removed `.writing` in between
        except FileExistsError as error:  # or between the two looks that `mkdir` takes at what is there
            if place.is_file() or place.parent.is_file():
                raise _cannot_write(place, error) from error
        except OSError as error:
            raise _cannot_write(place, error) from error


def remove_rooms(folder: Path) -> None:
    """Remove what was being written, once nothing is left to do.

    A process still on its way in makes its room anew and removes it too.
    """
    shutil.rmtree(folder / WRITING, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> DefectionError:
    return DefectionError(f"cannot write to {folder}: {error.strerror or error}; choose another --out")
