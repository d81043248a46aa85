"""Write a store: whatever ends the process, run it again and the bytes are those of an uninterrupted run.

The manifest is written first and names every shard to come; then the shards, each whole or absent; then the manifest
again, with their checksums. Several processes share the work: shard `i` is that of process `i % world`, and a process
that is through waits for the others, looks at their shards and does what one that died left undone or damaged, so any
one of them can finish alone.
Knows files only, no model: `caching.py` brings the vectors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import Json, file_digest, sync, write_bytes
from ..basics.progress import Advance
from .locking import LOCK, admitted, remove_rooms, room
from .manifest import MANIFEST, manifest_bytes, read_manifest
from .plan import StorePlan, shard_name
from .shards import Rows, read_header, same_bytes, write_shard
from .store import PROMPTS, Store

IN_FLIGHT = 2
"""Shards being written while the next is computed; one hashes while the other waits for the disk."""
Compute = Callable[[Rows], Mapping[str, Tensor]]
"""The tensors of some rows: `residuals` [prompt, layer, d_model]; in a ragged store [token, layer, d_model] with
`offsets` [prompt + 1]; and any others that are to lie beside them."""


def write_store(
    folder: Path,
    plan: StorePlan,
    compute: Compute,
    *,
    share: tuple[int, int] = (0, 1),
    verify: bool = True,
    advance: Advance = lambda amount: None,
) -> Store:
    """Bring the store at `folder` to what `plan` says, computing only shards that are missing or damaged.

    `share` is (number of this process, number of processes); all of them must be given the same plan. With `verify` the
    shards that were there before this call, of whichever process, are compared with their checksums, at some 1.7 GB a
    second and core; without, only their headers and sizes are looked at. `advance` hears of rows as they are done.
    Memory holds three shards at most.
    Raises DefectionError when the folder holds a store of something else, when another process is writing to it, and
    when it cannot be written.
    """
    number, world = share
    with admitted(folder, alone=world == 1):
        with room(folder, "plan") as aside:
            began = _now(folder)
            head, shards = _begin(folder, plan, aside)
        written = 0
        for turn in range(world):
            owner = (number + turn) % world
            with room(folder, f"share-{owner}") as aside:
                job = _Job(folder, plan, compute, aside, began if verify else None, advance)
                written += _fill(job, shards[owner::world])
        with room(folder, "plan") as aside:
            return _finish(folder, plan, head, shards, aside, written > 0)


@dataclass(frozen=True)
class _Shard:
    file: Path
    rows: Rows


@dataclass(frozen=True)
class _Job:
    folder: Path
    plan: StorePlan
    compute: Compute
    aside: Path
    verify_before: int | None
    """Shards written before this time (nanoseconds, by the file system's clock) are verified; None: none are."""
    advance: Advance


def _now(folder: Path) -> int:
    """The time by the clock that the shards' times are told by, which on a network is another machine's."""
    os.utime(folder / LOCK)
    return (folder / LOCK).stat().st_ctime_ns


def _begin(folder: Path, plan: StorePlan, aside: Path) -> tuple[Json, list[_Shard]]:
    """Adopt the store that is there, or put down the plan of a new one; what else is there is refused."""
    head = plan.head
    found = read_manifest(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    if found is None:
        rows = plan.split()
        shards = _shards(folder, rows)
        _refuse_strangers(plan, shards)
        tables = plan.tables(rows, [None] * len(rows))
    else:
        plan.refuse_other(folder, found)
        listed = found.table("shards")
        shards = _shards(folder, [(entry["rows"][0], entry["rows"][1]) for entry in listed])
        head = {**found.head, "prompts_sha256": head["prompts_sha256"]}
        tables = {**plan.tables([], []), "shards": listed}
    # A killed run may have left the prompts of another; and labels, which no vector depends on, may be new.
    prompts = folder / PROMPTS
    if not prompts.is_file() or file_digest(prompts) != head["prompts_sha256"]:
        write_bytes(prompts, (plan.prompt_lines,), aside)
    if found is None or found.head["prompts_sha256"] != head["prompts_sha256"]:
        head.pop("tables", None)
        write_bytes(folder / MANIFEST, (manifest_bytes(head, tables),), aside)
    return head, shards


def _shards(folder: Path, rows: Sequence[Rows]) -> list[_Shard]:
    return [_Shard(folder / shard_name(number), each) for number, each in enumerate(rows)]


def _refuse_strangers(plan: StorePlan, shards: Sequence[_Shard]) -> None:
    """Without a manifest, shards may be what is left of this very store, or of another: those are not overwritten."""
    for shard in shards:
        header = read_header(shard.file)
        if header is not None and header.key != plan.key:
            raise DefectionError(
                f"{shard.file} holds residuals of another computation; choose another --out or remove it"
            )


def _fill(job: _Job, shards: Sequence[_Shard]) -> int:
    """Compute what is missing, and say how many shards that was.

    Hashing and writing go on beside the next computation.
    """
    pending: deque[Future[None]] = deque()
    written = 0
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        for shard in shards:
            start, end = shard.rows
            if not _whole(shard, job.plan.key, job.verify_before):
                tensors = job.plan.checked(shard.rows, job.compute(shard.rows))
                written += 1
                while len(pending) >= IN_FLIGHT:
                    pending.popleft().result()
                pending.append(threads.submit(write_shard, shard.file, tensors, job.plan.key, shard.rows, job.aside))
            job.advance(end - start)
        for each in pending:
            each.result()
    return written


def _whole(shard: _Shard, key: str, verify_before: int | None) -> bool:
    """Whether the shard is there and is of this store; of one from before that time, also each of its bytes."""
    header = read_header(shard.file)
    if header is None or (header.key, header.rows) != (key, shard.rows):
        return False
    if verify_before is None or shard.file.stat().st_ctime_ns > verify_before:
        return True
    return same_bytes(shard.file, header)


def _finish(folder: Path, plan: StorePlan, head: Json, shards: Sequence[_Shard], aside: Path, written: bool) -> Store:
    """Put the shards' checksums into the manifest, unless they are there."""
    headers = [read_header(shard.file) for shard in shards]
    for shard, header in zip(shards, headers, strict=True):
        if header is None:
            raise DefectionError(f"{shard.file} vanished while the store was written; run it again")
    vectors = sum(header.vectors for header in headers if header is not None)
    head = {name: value for name, value in head.items() if name != "tables"}
    tables = plan.tables([shard.rows for shard in shards], headers)
    content = manifest_bytes(head | {"n_vectors": vectors, "complete": True}, tables)
    changed = (folder / MANIFEST).read_bytes() != content
    if written or changed:  # the shards must be on the disk before a manifest that counts on them
        sync(folder, [shard.file.name for shard in shards])
    if changed:
        write_bytes(folder / MANIFEST, (content,), aside)
    sync(folder, [])
    remove_rooms(folder)
    return Store(folder, read_manifest(folder / MANIFEST))
