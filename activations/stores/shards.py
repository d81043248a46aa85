"""One shard of a store: a safetensors file that vouches for itself.

Its header names the store it belongs to (`key`) and its rows, and holds the SHA-256 of the bytes after it and its own
(with zeros in its place). So a shard that was cut off, damaged or left by another computation is known without any
other file, and a run that was killed goes on from the shards alone. The manifest keeps each header's checksum, which
covers all the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import Json, write_bytes

RESIDUALS = "residuals"
OFFSETS = "offsets"
REPLIES = "replies"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32", torch.int64: "I64"}
NAMED = {name: dtype for dtype, name in DTYPES.items()}
LENGTH_BYTES = 8
LARGEST_HEADER = 1 << 20
ZEROS = "0" * 64
AGAIN = "run the same `defection cache` again, or `defection store repair`, to recompute it"

Rows = tuple[int, int]


@dataclass(frozen=True)
class Header:
    """What a shard says of itself."""

    key: str
    """Of the store; see `Plan.key`."""
    rows: Rows
    """First row of the store, and the one after the last."""
    tensors_sha256: str
    """Of all bytes after the header."""
    vectors: int
    """Length of `residuals`: the rows, or in a ragged store their tokens."""
    tensors: Mapping[str, Json]
    """Of each tensor its `dtype`, `shape` and `data_offsets`."""
    start: int
    """Where the tensors' bytes start."""
    bytes: int
    """Size of the whole file."""
    sha256: str
    """Of the header with zeros in the place of this: the shard's checksum in the manifest."""


def write_shard(file: Path, tensors: Mapping[str, Tensor], key: str, rows: Rows, room: Path | None = None) -> None:
    """Write one shard, whole or not at all; `room` is the folder where it grows.

    It is not flushed: half a shard, which a loss of power may leave, is known by its checksums. Whoever counts on the
    shards without looking flushes them first.
    Written by hand because the checksum goes into the header, and straight from the tensors' memory: `save_file` copies
    them first and takes two to four times as long.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps each aligned
    views = [tensor.contiguous().view(-1).view(torch.uint8).numpy().data for _, tensor in ordered]
    state = hashlib.sha256()
    for view in views:
        state.update(view)
    write_bytes(file, [_header_bytes(dict(ordered), key, rows, state.hexdigest()), *views], room, flush=False)


def _header_bytes(tensors: Mapping[str, Tensor], key: str, rows: Rows, tensors_sha256: str) -> bytes:
    about = {"key": key, "rows": f"{rows[0]}:{rows[1]}", "tensors_sha256": tensors_sha256, "header_sha256": ZEROS}
    header: dict[str, object] = {"__metadata__": about}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    whole = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return whole.replace(ZEROS.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def read_header(file: Path) -> Header | None:
    """What the shard says of itself; None when it is not there, or its header or its length is not what was written.

    Whether its tensors are is for `same_bytes` to say.
    """
    try:
        with open(file, "rb") as opened:
            return _parsed(opened, os.fstat(opened.fileno()).st_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DefectionError(f"cannot read {file}: {error.strerror or error}") from error


def _parsed(content: IO[bytes] | mmap.mmap, size: int) -> Header | None:
    """The header at the start of a shard of that many bytes, unless something is wrong with it."""
    start = content.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > min(size, LARGEST_HEADER):
        return None
    start += content.read(length)
    try:
        header = json.loads(start[LENGTH_BYTES:])
        about = header.pop("__metadata__")
        first, last = about["rows"].split(":")
        end = LENGTH_BYTES + length + max(tensor["data_offsets"][1] for tensor in header.values())
        digest = str(about["header_sha256"])
        if not all(map(_fits, header.values())):
            return None
        if size != end or hashlib.sha256(start.replace(digest.encode(), ZEROS.encode(), 1)).hexdigest() != digest:
            return None
        return Header(
            key=str(about["key"]),
            rows=(int(first), int(last)),
            tensors_sha256=str(about["tensors_sha256"]),
            vectors=int(header[RESIDUALS]["shape"][0]),
            tensors=header,
            start=LENGTH_BYTES + length,
            bytes=size,
            sha256=digest,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _fits(tensor: Json) -> bool:
    """Whether a tensor has as many bytes as its shape and dtype say."""
    start, end = tensor["data_offsets"]
    return bool(math.prod(tensor["shape"]) * NAMED[tensor["dtype"]].itemsize == end - start)


def same_bytes(file: Path, header: Header) -> bool:
    """Whether the bytes after the header are those that were written; reads the whole file, in constant memory."""
    try:
        with open(file, "rb", buffering=0) as opened:
            opened.seek(header.start)
            return hashlib.file_digest(opened, "sha256").hexdigest() == header.tensors_sha256
    except OSError as error:
        raise DefectionError(f"cannot read {file}: {error.strerror or error}") from error


def map_tensors(file: Path, sha256: str | None, *, scattered: bool = False) -> dict[str, Tensor]:
    """The shard's tensors, memory-mapped: bytes come from the disk when they are looked at, and nothing is copied.

    `scattered` says that few places will be looked at: the system then reads no further than those. Otherwise it reads
    megabytes ahead and holds them in huge pages, where it can: a page at a time, the mapping alone would take as long
    as the disk. Writing to the tensors changes memory only.
    Raises DefectionError when the file is missing, or its header does not have that checksum.
    """
    mapped = _map(file, scattered)
    # Looked at by way of the map: reading the file would bring its first megabytes into memory in small pages.
    header = None if mapped is None else _parsed(mapped, len(mapped))
    if mapped is None or header is None or header.sha256 != sha256:
        state = "damaged" if file.exists() else "missing"
        raise DefectionError(f"{file} is {state}; {AGAIN}")
    return {name: _mapped(mapped, header.start, about) for name, about in header.tensors.items()}


def _map(file: Path, scattered: bool) -> mmap.mmap | None:
    """The file in memory; None when it is not there or empty."""
    try:
        with open(file, "rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise DefectionError(f"cannot read {file}: {error.strerror or error}") from error
    advice = getattr(mmap, "MADV_RANDOM" if scattered else "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel built without huge pages refuses
            mapped.madvise(advice)
    return mapped


def _mapped(mapped: mmap.mmap, start: int, about: Json) -> Tensor:
    dtype, shape = NAMED[about["dtype"]], about["shape"]
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    flat: Tensor = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start + about["data_offsets"][0])
    return flat.view(shape)
