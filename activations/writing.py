"""Write a store: whatever ends the process, run it again and the bytes are those of an uninterrupted run.

The manifest is written first and names every shard to come; then the shards, each whole or absent; then the manifest
again, with their checksums. Several processes share the work: shard `i` is that of process `i % world`, and a process
that is through waits for the others and does what one that died left undone, so any one of them can finish alone.
Knows files only, no model: `caching.py` brings the vectors.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import DefectionError
from .files import Json, digest, file_digest, jsonl, sync_folder, write_bytes
from .locking import admitted, remove_rooms, room
from .manifest import MANIFEST, SCHEMA_VERSION, Manifest, manifest_bytes, read_manifest, write_manifest
from .progress import Advance
from .prompts import Prompt
from .shards import OFFSETS, RESIDUALS, Header, Rows, read_header, same_bytes, write_shard
from .store import NAMED_DTYPES, PROMPTS, Store

ROWS_PER_SHARD = 512
IN_FLIGHT = 2
"""Shards being written while the next is computed; one hashes while the other waits for the disk."""
DIFFERENCES = {
    "model": "model or chat template",
    "layers": "layers",
    "site": "site",
    "position": "position",
    "dtype": "dtype",
    "computed_in": "dtype of the forward pass",
    "tokens_sha256": "prompts",
    "max_tokens": "batch size",
    "reply_tokens": "length of replies",
    "d_model": "width",
    "ragged": "number of vectors a prompt",
}

Compute = Callable[[Rows], Mapping[str, Tensor]]
"""The tensors of some rows: `residuals` [prompt, layer, d_model]; in a ragged store [token, layer, d_model] with
`offsets` [prompt + 1]; and any others that are to lie beside them."""


@dataclass(frozen=True)
class Plan:
    """What a store will hold, before there is a vector."""

    about: Json
    """Everything the vectors depend on: `model` (name, fingerprint, template), `layers`, `position`, `dtype`,
    `d_model`, `tokens_sha256` … Goes into the manifest as it is."""
    prompts: Sequence[Prompt]
    n_tokens: Sequence[int]
    rows_per_shard: int = ROWS_PER_SHARD

    @cached_property
    def key(self) -> str:
        """A hash over all of `about`, except what the model is called (PITFALLS 12)."""
        nameless = {name: value for name, value in self.about["model"].items() if name != "name"}
        return digest({**self.about, "model": nameless})

    @cached_property
    def prompt_lines(self) -> bytes:
        """The content of `prompts.jsonl`."""
        return jsonl(prompt.to_json() for prompt in self.prompts).encode()

    @property
    def head(self) -> Json:
        """The manifest's head while nothing is written."""
        return {
            "schema_version": SCHEMA_VERSION,
            "key": self.key,
            **self.about,
            "n_prompts": len(self.prompts),
            "n_vectors": None,
            "complete": False,
            "prompts_sha256": hashlib.sha256(self.prompt_lines).hexdigest(),
        }

    def tables(self, rows: Sequence[Rows], headers: Sequence[Header | None]) -> dict[str, list[Any]]:
        """The manifest's tables; None for a shard that is not there yet."""
        return {
            "shards": [_entry(*shard) for shard in zip(range(len(rows)), rows, headers, strict=True)],
            "ids": [prompt.id for prompt in self.prompts],
            "n_tokens": list(self.n_tokens),
        }

    def split(self) -> list[Rows]:
        """The rows of each shard."""
        size, total = self.rows_per_shard, len(self.prompts)
        return [(start, min(start + size, total)) for start in range(0, total, size)]


def write_store(
    folder: Path,
    plan: Plan,
    compute: Compute,
    *,
    share: tuple[int, int] = (0, 1),
    verify: bool = True,
    advance: Advance = lambda amount: None,
) -> Store:
    """Bring the store at `folder` to what `plan` says, computing only shards that are missing or damaged.

    `share` is (number of this process, number of processes); all of them must be given the same plan. With `verify` the
    shards that are there already are compared with their checksums, at some 1.7 GB a second and core; without, only
    their headers and sizes are looked at. `advance` hears of rows as they are done. Memory holds three shards at most.
    Raises DefectionError when the folder holds a store of something else, when another process is writing to it, and
    when it cannot be written.
    """
    number, world = share
    with admitted(folder, alone=world == 1):
        with room(folder, "plan") as aside:
            head, shards = _begin(folder, plan, aside)
        for turn in range(world):
            owner = (number + turn) % world
            with room(folder, f"share-{owner}") as aside:
                job = _Job(folder, plan, compute, aside, verify and turn == 0, advance)
                _fill(job, shards[owner::world])
        with room(folder, "plan") as aside:
            return _finish(folder, plan, head, [shard.rows for shard in shards], aside)


@dataclass(frozen=True)
class _Shard:
    file: Path
    rows: Rows


@dataclass(frozen=True)
class _Job:
    folder: Path
    plan: Plan
    compute: Compute
    aside: Path
    verify: bool
    advance: Advance


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def _entry(number: int, rows: Rows, header: Header | None) -> dict[str, Any]:
    return {
        "file": shard_name(number),
        "rows": list(rows),
        "vectors": header and header.vectors,
        "bytes": header and header.bytes,
        "sha256": header and header.sha256,
    }


def _begin(folder: Path, plan: Plan, aside: Path) -> tuple[Json, list[_Shard]]:
    """Adopt the store that is there, or put down the plan of a new one; what else is there is refused."""
    head = plan.head
    found = read_manifest(folder / MANIFEST) if (folder / MANIFEST).exists() else None
    if found is None:
        rows = plan.split()
        shards = _shards(folder, rows)
        _refuse_strangers(plan, shards)
        tables = plan.tables(rows, [None] * len(rows))
    else:
        _refuse_other(folder, plan, found)
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
        write_manifest(folder / MANIFEST, manifest_bytes(head, tables), aside)
    return head, shards


def _shards(folder: Path, rows: Sequence[Rows]) -> list[_Shard]:
    return [_Shard(folder / shard_name(number), each) for number, each in enumerate(rows)]


def _refuse_strangers(plan: Plan, shards: Sequence[_Shard]) -> None:
    """Without a manifest, shards may be what is left of this very store, or of another: those are not overwritten."""
    for shard in shards:
        header = read_header(shard.file)
        if header is not None and header.key != plan.key:
            raise DefectionError(
                f"{shard.file} holds residuals of another computation; choose another --out or remove it"
            )


def _refuse_other(folder: Path, plan: Plan, found: Manifest) -> None:
    if found.head["schema_version"] != SCHEMA_VERSION:
        raise DefectionError(
            f"{folder} was written in schema version {found.head['schema_version']}, which is read but no longer "
            "written; choose another --out or remove it"
        )
    same_ids = list(found.table("ids")) == [prompt.id for prompt in plan.prompts]
    if found.head["key"] == plan.key and same_ids:
        return
    differs = [
        name
        for field, name in DIFFERENCES.items()
        if _nameless(found.head.get(field)) != _nameless(plan.about.get(field))
    ]
    differs += [] if same_ids else ["prompt ids"]
    raise DefectionError(
        f"{folder} already holds residuals of another computation (different {', '.join(differs)}); "
        "choose another --out or remove it"
    )


def _nameless(value: Any) -> Any:
    return {key: part for key, part in value.items() if key != "name"} if isinstance(value, dict) else value


def _fill(job: _Job, shards: Sequence[_Shard]) -> None:
    """Compute what is missing. Hashing and writing go on beside the next computation."""
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        for shard in shards:
            start, end = shard.rows
            if not _whole(shard, job.plan.key, verify=job.verify):
                tensors = _checked(job.plan, shard.rows, job.compute(shard.rows))
                while len(pending) >= IN_FLIGHT:
                    pending.popleft().result()
                pending.append(threads.submit(write_shard, shard.file, tensors, job.plan.key, shard.rows, job.aside))
            job.advance(end - start)
        for each in pending:
            each.result()


def _whole(shard: _Shard, key: str, *, verify: bool) -> bool:
    """Whether the shard is there and is of this store; with `verify`, also whether each byte is what was written."""
    header = read_header(shard.file)
    if header is None or (header.key, header.rows) != (key, shard.rows):
        return False
    return not verify or same_bytes(shard.file, header)


def _checked(plan: Plan, rows: Rows, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, if they are what the plan promises; DefectionError names the first row that is not finite."""
    values, count = tensors[RESIDUALS], rows[1] - rows[0]
    shape = (len(plan.about["layers"]), plan.about["d_model"])
    offsets = tensors.get(OFFSETS)
    if bool(plan.about.get("ragged")) != (offsets is not None):
        raise DefectionError("a ragged store, and no other, needs the tensor 'offsets' [prompt + 1]")
    if offsets is None:
        expected = count
    else:
        rises = offsets.dtype == torch.int64 and len(offsets) == count + 1 and bool((offsets.diff() >= 0).all())
        if not rises or offsets[0] != 0:
            raise DefectionError(f"offsets of rows {rows[0]} to {rows[1]} must be {count + 1} rising int64 from 0")
        expected = int(offsets[-1])
    if tuple(values.shape) != (expected, *shape) or values.dtype != NAMED_DTYPES[plan.about["dtype"]]:
        raise DefectionError(
            f"residuals of rows {rows[0]} to {rows[1]} are {values.dtype} {tuple(values.shape)}; the plan says "
            f"{plan.about['dtype']} {(expected, *shape)}"
        )
    return tensors


def _finish(folder: Path, plan: Plan, head: Json, rows: Sequence[Rows], aside: Path) -> Store:
    """Put the shards' checksums into the manifest, unless they are there."""
    headers = [read_header(folder / shard_name(number)) for number in range(len(rows))]
    for number, header in enumerate(headers):
        if header is None:
            raise DefectionError(f"{folder / shard_name(number)} vanished while the store was written; run it again")
    vectors = sum(header.vectors for header in headers if header is not None)
    head = {name: value for name, value in head.items() if name != "tables"}
    content = manifest_bytes(head | {"n_vectors": vectors, "complete": True}, plan.tables(rows, headers))
    if (folder / MANIFEST).read_bytes() != content:
        sync_folder(folder)  # the shards' names must be on the disk before a manifest that counts on them
        write_manifest(folder / MANIFEST, content, aside)
    sync_folder(folder)
    remove_rooms(folder)
    return Store(folder, read_manifest(folder / MANIFEST))
