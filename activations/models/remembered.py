"""What was found out about a folder's files, kept beside them until one of them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..basics.errors import DefectionError
from ..basics.files import Json, read_json, write_json
from .embedded import cache_directory

RECORD = ".defection.json"
SCHEMA_VERSION = 1


def remembered(folder: Path) -> Json:
    """The record of a folder's files as they are now; empty where there is none, or of other files."""
    for place in _places(folder):
        try:
            record = read_json(place)
        except DefectionError:  # none, or not ours
            continue
        known = record.get("known")
        if record.get("schema_version") == SCHEMA_VERSION and record.get("files") == _stamp(folder):
            return known if isinstance(known, dict) else {}
    return {}


def remember(folder: Path, **found: object) -> None:
    """Add to the record, beside the files or else in the cache directory; where neither can be written, do without."""
    record = {"schema_version": SCHEMA_VERSION, "files": _stamp(folder), "known": remembered(folder) | found}
    for place in _places(folder):
        try:
            write_json(place, record)
            return
        except (DefectionError, OSError):
            continue


def _places(folder: Path) -> Iterator[Path]:
    yield folder / RECORD
    try:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
        yield cache_directory() / "known" / f"{name}.json"
    except (OSError, DefectionError):  # no home
        return


def _stamp(folder: Path) -> dict[str, list[int]]:
    """Of each file that decides a model: its size, and when it was written and became what it is here.

    The latter cannot be set by whoever packed the files, so a record that came with others does not count.
    """
    stamp = {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        about = file.stat()
        stamp[file.name] = [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return stamp
