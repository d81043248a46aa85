"""`manifest.json`: a head of constant size, then tables as long as the store; one JSON object all the same.

The head says what the store is. The tables (`shards`, `ids`, `n_tokens`) follow it, each in its own lines, and are read
when they are needed, so that opening a store costs the same for a thousand prompts and for ten million. The head holds
the size and SHA-256 of each table, and its own last line the SHA-256 of all lines before it: no bit of the file can
change unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict

from ..basics.errors import DefectionError
from ..basics.files import Json
from ..basics.headed import understood
from ..basics.typed import typed
from ..models.hardware import DTYPE_NAMES
from ..models.model import IdentityRecord

MANIFEST = "manifest.json"
STORE_SCHEMA = 2
TABLES = ("shards", "ids", "n_tokens")
MOST_ROWS = 1 << 48
SEAL = b'  "head_sha256": '
HEAD = 1 << 14
"""Bytes into which a head mostly fits; no more of a manifest is read at first."""


class TableRecord(TypedDict):
    """Size and checksum of a table."""

    bytes: int
    sha256: str


class ShardRecord(TypedDict):
    """What the manifest keeps of a shard: its rows are the first, and one after the last; None: it is yet to come."""

    file: str
    rows: tuple[int, int]
    vectors: int | None
    bytes: int | None
    sha256: str | None


class StoreHead(TypedDict):
    """What a store is; what else a plan says of itself stands beside it."""

    schema_version: int
    key: str
    model: IdentityRecord
    layers: list[int]
    position: str
    dtype: str
    d_model: int
    tables: dict[str, TableRecord]
    complete: bool
    prompts_sha256: str
    site: NotRequired[str]
    ragged: NotRequired[bool]
    computed_in: NotRequired[str]
    reply_tokens: NotRequired[int]
    max_tokens: NotRequired[int]
    tokens_sha256: NotRequired[str]
    n_prompts: NotRequired[int]
    n_vectors: NotRequired[int | None]


Tables = Mapping[str, Sequence[object]]
"""Of each table of `TABLES` its rows."""


@dataclass(frozen=True)
class Manifest:
    """The head of a store's manifest, and where its tables are."""

    path: Path
    head: StoreHead
    start: int
    """Where the tables start, in bytes."""

    def table(self, name: str) -> list[Any]:
        """Read a table; DefectionError when it is damaged, or another manifest has taken this one's place since."""
        before = TABLES[: TABLES.index(name)]
        spot = self.start + sum(self.head["tables"][other]["bytes"] for other in before)
        try:
            with open(self.path, "rb") as file:
                file.seek(spot)
                text = file.read(self.head["tables"][name]["bytes"])
        except OSError as error:
            raise DefectionError(f"cannot read {self.path}: {error.strerror or error}") from error
        if hashlib.sha256(text).hexdigest() != self.head["tables"][name]["sha256"]:
            raise _damaged(self.path, f"its table {name!r} does not have its checksum")
        with understood(self.path, "manifest of a store"):
            rows: list[Any] = json.loads(text[text.index(b"[") : text.rindex(b"]") + 1])
            return _shards(rows) if name == "shards" else _all_of(rows, {"ids": str, "n_tokens": int}[name], name)


def manifest_bytes(head: Mapping[str, object], tables: Tables) -> bytes:
    """The file's bytes; they depend on the values alone."""
    blocks = {name: _block(name, tables[name]) for name in TABLES}
    sizes = {name: {"bytes": len(block), "sha256": hashlib.sha256(block).hexdigest()} for name, block in blocks.items()}
    lines = [f"  {_json(key)}: {_json(value)},\n" for key, value in {**head, "tables": sizes}.items()]
    start = ("{\n" + "".join(lines)).encode()
    return start + _seal(start) + b"".join(blocks.values())


def _block(name: str, rows: Sequence[object]) -> bytes:
    """A table's lines: one an entry where entries are objects."""
    text = _json(list(rows))
    if rows and isinstance(rows[0], dict):
        text = "[\n    " + ",\n    ".join(map(_json, rows)) + "\n  ]"
    end = "\n}\n" if name == TABLES[-1] else ",\n"
    return f"  {_json(name)}: {text}{end}".encode()


def _seal(head: bytes) -> bytes:
    return SEAL + f'"{hashlib.sha256(head).hexdigest()}",\n'.encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_manifest(path: Path) -> Manifest:
    """Read the head; DefectionError for a missing or damaged manifest, or one of a version not readable here."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head, seal = _head(file)
    except OSError as error:
        raise DefectionError(f"cannot read {path}: {error.strerror or error}") from error
    if seal != _seal(head):
        raise _damaged(path, "its head does not have its checksum")
    with understood(path, "manifest of a store"):
        value = _told(path, json.loads(head[: head.rindex(b",")] + b"}"))
    start = len(head) + len(seal)
    if size != start + sum(table["bytes"] for table in value["tables"].values()):
        raise _damaged(path, f"it is {size} bytes long")
    return Manifest(path, value, start)


def _head(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The head's lines and the line that seals them, reading little more than those; empty without a seal."""
    content = b""
    while more := file.read(max(HEAD, len(content))):
        content += more
        spot = content.find(b"\n" + SEAL) + 1
        end = content.find(b"\n", spot) + 1
        if spot and end:
            return content[:spot], content[spot:end]
    return content, b""


def _told(path: Path, value: Json) -> StoreHead:
    if value.get("schema_version") != STORE_SCHEMA:
        raise DefectionError(
            f"{path} has schema version {value.get('schema_version')!r:.80}; this toolkit reads {STORE_SCHEMA}"
        )
    head: StoreHead = typed(value, StoreHead, "its head")
    dtypes = DTYPE_NAMES.values()
    if set(head["tables"]) != set(TABLES) or head["dtype"] not in dtypes or not head["layers"]:
        raise DefectionError(f"its head names no layers, no dtype of {', '.join(dtypes)}, or other tables")
    return head


def _shards(rows: list[object]) -> list[ShardRecord]:
    """The shards; DefectionError unless each begins where the one before ended."""
    shards: list[ShardRecord] = typed(rows, list[ShardRecord], "its table 'shards'")
    starts, ends = [shard["rows"][0] for shard in shards], [shard["rows"][1] for shard in shards]
    grow = all(start < end < MOST_ROWS for start, end in zip(starts, ends, strict=True))
    if not (grow and starts == [0, *ends[:-1]]):
        raise DefectionError("its shards do not follow one another")
    if not all(re.fullmatch(r"[\w.-]+", shard["file"]) for shard in shards):
        raise DefectionError("a shard of it lies elsewhere")
    return shards


def _all_of(rows: list[Any], kind: type, name: str) -> list[Any]:
    """The rows, of which there may be millions, if all are of one kind."""
    if not set(map(type, rows)) <= {kind}:
        raise DefectionError(f"its table {name!r} holds more than {kind.__name__}")
    return rows


def _damaged(path: Path, why: str) -> DefectionError:
    return DefectionError(
        f"{path} is damaged, or no store's: {why}; if it is a store's, remove it and run the same `defection cache` "
        "again, which keeps every shard that is whole"
    )
