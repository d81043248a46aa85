"""What a long run has computed, kept a line at a time as it comes, so that a cut-off run goes on."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest, whole_lines


class Line(TypedDict):
    """A line of the file: of which run, the digest of what the object is called, the object, and its digest."""

    key: str
    name: str
    found: Json
    seal: str


class Journal:
    """JSON objects that are computed once: what an earlier run of the same key left in the file is not made again.

    An object that is not the one that was written, whatever came over the file, is made again.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        lines = whole_lines(path, Line)
        own = (line for line in lines if line["key"] == key and line["seal"] == _seal(line["found"]))
        self.known: dict[str, Json] = {line["name"]: line["found"] for line in own}

    def knows(self, name: Mapping[str, object]) -> bool:
        """Whether there is an object of that name."""
        return digest(dict(name)) in self.known

    def kept(self, name: Mapping[str, object], make: Callable[[], Json]) -> Json:
        """Any JSON object of that name, made if it is not there yet."""
        called = digest(dict(name))
        if called not in self.known:
            with self._written():  # before hours of work, not after them
                self.path.parent.mkdir(parents=True, exist_ok=True)
            found: Json = json.loads(json.dumps(make()))
            self._append({"key": self.key, "name": called, "found": found, "seal": _seal(found)})
            self.known[called] = found
        return self.known[called]

    def _append(self, entry: Json) -> None:
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self._written(), open(self.path, "a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(entry) + "\n")

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
            raise DefectionError(f"cannot write {self.path}: {error.strerror or error}; {advice}") from error


def _seal(found: Json) -> str:
    # Not `digest`, which refuses NaN: a figure that could not be had is one.
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
