"""Residual vectors on disk: a manifest that says exactly what they are, and checksummed safetensors shards.

A store is a directory with `manifest.json` (what was computed, row order, checksums), `prompts.jsonl` (the prompts, in
row order) and `shard-00000.safetensors` …, each with one tensor `residuals` [prompt, layer, d_model]. The manifest is
written first and names every shard to come; a shard's checksum enters it once the shard is whole on disk. A run that
was killed is continued by calling `cache` again, and the bytes are those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .batching import READING_COST, REPLYING_COST, plan_batches
from .capture import (
    POSITION,
    Residuals,
    last_token_residuals,
    parse_layers,
    refuse_non_finite,
    tokenize_within_context,
)
from .errors import DefectionError
from .files import Json, digest, file_digest, read_json, write_json, write_jsonl, write_tensors
from .generate import reply_to_batch
from .models import Model, ModelIdentity, choose_dtype
from .progress import Advance, progress
from .prompts import Prompt, load_prompts

MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"
TENSOR = "residuals"
REPLIES = "replies"
NO_TOKEN = -1
SCHEMA_VERSION = 1
REQUIRED = ("key", "model", "layers", "position", "ids", "n_tokens", "shards")
ROWS_PER_SHARD = 512
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Store:
    """An opened store. Opening reads the manifest only; vectors are memory-mapped when asked for."""

    path: Path
    manifest: Json

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers held, ascending."""
        return tuple(self.manifest["layers"])

    @property
    def complete(self) -> bool:
        """Whether every shard has been written."""
        return all(shard["sha256"] for shard in self.manifest["shards"])

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, in row order."""
        return tuple(load_prompts(self.path / PROMPTS))

    def verify(self) -> None:
        """Compare every shard with its checksum; DefectionError names the first that differs or is missing."""
        for shard in self.manifest["shards"]:
            if not _intact(self.path, shard):
                raise DefectionError(
                    f"{self.path / shard['file']} is missing, unfinished or damaged; run the same `defection cache` "
                    "again to recompute it"
                )

    def read(self, layers: Sequence[int] | None = None) -> Residuals:
        """All rows, fp32, of all layers or some. Raises DefectionError for an unfinished store or an absent layer."""
        wanted = self.layers if layers is None else tuple(layers)
        missing = [layer for layer in wanted if layer not in self.layers]
        if missing:
            raise DefectionError(f"{self.path} holds layers {list(self.layers)}, not {missing}")
        self._refuse_unfinished()
        columns = [self.layers.index(layer) for layer in wanted]
        parts = [_read_shard(self.path / shard["file"], columns) for shard in self.manifest["shards"]]
        model = self.manifest["model"]
        return Residuals(
            values=torch.cat(parts),
            layers=wanted,
            prompts=self.prompts,
            n_tokens=tuple(self.manifest["n_tokens"]),
            model=ModelIdentity(model["name"], model["fingerprint"], model["template"]),
            position=self.manifest["position"],
        )

    def _refuse_unfinished(self) -> None:
        if not self.complete:
            raise DefectionError(f"{self.path} is unfinished; run the same `defection cache` again to complete it")

    def read_replies(self) -> list[list[int]]:
        """Token ids of the greedy reply to each prompt, in row order.

        Raises DefectionError for an unfinished store, or when no replies were kept.
        """
        if not self.manifest.get("reply_tokens"):
            raise DefectionError(f"{self.path} holds no replies; cache it with reply_tokens")
        self._refuse_unfinished()
        rows: list[list[int]] = []
        for shard in self.manifest["shards"]:
            tensor = _read_tensor(self.path / shard["file"], REPLIES)
            rows += [[token for token in row if token != NO_TOKEN] for row in tensor.tolist()]
        return rows


def open_store(path: str | Path) -> Store:
    """Open a store directory; DefectionError when it is none, or of a later version."""
    folder = Path(path)
    if not (folder / MANIFEST).exists():
        raise DefectionError(f"{folder} is not a store: it has no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise DefectionError(
            f"{folder / MANIFEST} has schema version {manifest.get('schema_version')!r}; this toolkit reads "
            f"{SCHEMA_VERSION}"
        )
    absent = [name for name in REQUIRED if name not in manifest]
    if absent:
        raise DefectionError(f"{folder / MANIFEST} is not a store's manifest: it has no {', '.join(absent)}")
    return Store(folder, manifest)


def cache(
    model: Model,
    prompts: Sequence[Prompt],
    path: str | Path,
    *,
    layers: str | Sequence[int] = "all",
    dtype: str | torch.dtype | None = None,
    reply_tokens: int = 0,
    max_tokens: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    what: str = "Caching residual streams",
) -> Store:
    """Read the residual streams of `prompts` into the store at `path`, continuing whatever is there already.

    `dtype` is that of the file; by default the one the model computes in, which loses nothing.
    With `reply_tokens` each prompt is also continued greedily by up to that many tokens, out of the same forward pass.
    Raises DefectionError when the directory holds a store of something else (the sentence says what differs), or when
    another process is writing to it.
    """
    folder = Path(path)
    if not prompts:
        raise DefectionError(f"there are no prompts to read into {folder}")
    ids = tokenize_within_context(model, prompts, reply_tokens=reply_tokens)
    chosen = parse_layers(layers, model.n_layers)
    kept_as = model.dtype if dtype is None else choose_dtype(dtype)
    # Decoding a step costs nearly the same for few rows as for many, so replies want larger batches.
    max_tokens = max_tokens or (3072 if reply_tokens else 1024)
    work = _Work(model, prompts, ids, chosen, kept_as, max_tokens, reply_tokens)
    manifest = _plan(work, rows_per_shard)
    with _sole_writer(folder):
        manifest = _adopt(folder, manifest)
        # Always: those on disk may be damaged, or left by a run of other prompts that was cut off before its manifest.
        write_jsonl(folder / PROMPTS, (prompt.to_json() for prompt in prompts))
        todo = [shard for shard in manifest["shards"] if not _intact(folder, shard)]
        if not todo:
            return Store(folder, manifest)
        write_json(folder / MANIFEST, manifest)
        with progress(what, total=sum(end - start for start, end in (s["rows"] for s in todo)), unit="prompts") as bar:
            for shard in todo:
                _write_shard(work, folder, shard, bar)
                write_json(folder / MANIFEST, manifest)
    return Store(folder, manifest)


@dataclass(frozen=True)
class _Work:
    """What is to be computed."""

    model: Model
    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    layers: tuple[int, ...]
    dtype: torch.dtype
    max_tokens: int
    reply_tokens: int


def _plan(work: _Work, rows_per_shard: int) -> Json:
    """The manifest of a store that is still empty. Its key covers everything the vectors depend on (PITFALLS 12)."""
    model, prompts = work.model, work.prompts
    computed: Json = {
        "model": {
            "name": model.identity.name,
            "fingerprint": model.identity.fingerprint,
            "template": model.identity.template,
        },
        "layers": list(work.layers),
        "position": POSITION,
        "dtype": DTYPE_NAMES[work.dtype],
        "computed_in": DTYPE_NAMES[model.dtype],
        "max_tokens": work.max_tokens,
        "reply_tokens": work.reply_tokens,
        "tokens_sha256": digest([list(row) for row in work.ids]),
    }
    nameless = {**computed, "model": {k: v for k, v in computed["model"].items() if k != "name"}}
    starts = range(0, len(prompts), rows_per_shard)
    return {
        "schema_version": SCHEMA_VERSION,
        "key": digest(nameless),
        **computed,
        "d_model": model.d_model,
        "ids": [prompt.id for prompt in prompts],
        "n_tokens": [len(row) for row in work.ids],
        "shards": [
            {
                "file": f"shard-{number:05d}.safetensors",
                "rows": [start, min(start + rows_per_shard, len(prompts))],
                "sha256": None,
            }
            for number, start in enumerate(starts)
        ],
    }


def _adopt(folder: Path, planned: Json) -> Json:
    """The manifest on disk if it is of the same computation, the planned one if there is none."""
    if not (folder / MANIFEST).exists():
        return planned
    found = open_store(folder).manifest
    if found["key"] == planned["key"] and found["ids"] == planned["ids"]:
        return found
    names = {
        "model": "model or chat template",
        "layers": "layers",
        "dtype": "dtype",
        "computed_in": "dtype of the forward pass",
        "tokens_sha256": "prompts",
        "ids": "prompt ids",
        "max_tokens": "batch size",
        "reply_tokens": "length of replies",
    }
    differs = [name for field, name in names.items() if found.get(field) != planned[field]]
    raise DefectionError(
        f"{folder} already holds residuals of another computation (different {', '.join(differs)}); "
        "choose another --out or remove it"
    )


def _write_shard(work: _Work, folder: Path, shard: dict[str, Any], advance: Advance) -> None:
    """Compute one shard and record its checksum. Batches never cross shards, so each is reproducible alone."""
    start, end = shard["rows"]
    rows = work.ids[start:end]
    values = torch.empty(len(rows), len(work.layers), work.model.d_model, dtype=torch.float32)
    replies = torch.full((len(rows), work.reply_tokens), NO_TOKEN, dtype=torch.int32)
    group_cost = REPLYING_COST if work.reply_tokens else READING_COST
    for batch in plan_batches(rows, max_tokens=work.max_tokens, group_cost=group_cost):
        if work.reply_tokens:
            said, seen = reply_to_batch(work.model, rows, batch, work.reply_tokens, work.layers)
            for row, tokens in zip(batch.rows, said, strict=True):
                replies[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
            assert seen is not None
        else:
            seen = last_token_residuals(work.model, rows, batch, work.layers)
        values[list(batch.rows)] = seen
        advance(len(batch.rows))
    refuse_non_finite(values, work.prompts[start:end], work.layers)
    target = folder / shard["file"]
    tensors = {TENSOR: values.to(work.dtype)} | ({REPLIES: replies} if work.reply_tokens else {})
    write_tensors(target, tensors)
    shard["sha256"] = file_digest(target)


def _intact(folder: Path, shard: dict[str, Any]) -> bool:
    file = folder / shard["file"]
    return bool(shard["sha256"]) and file.exists() and file_digest(file) == shard["sha256"]


def _read_shard(file: Path, columns: Sequence[int]) -> torch.Tensor:
    return _read_tensor(file, TENSOR, columns).float()


def _read_tensor(file: Path, name: str, columns: Sequence[int] | None = None) -> torch.Tensor:
    """A tensor of a shard, or some of its second dimension, without reading the rest of the file."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            tensor: torch.Tensor = (
                opened.get_tensor(name) if columns is None else opened.get_slice(name)[:, list(columns)]
            )
            return tensor
    except (SafetensorError, FileNotFoundError) as error:
        raise DefectionError(
            f"{file} is missing or damaged ({error}); run the same `defection cache` again to recompute it"
        ) from error


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the store's lock; the system drops it when the process dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (closed below, however this ends)
    except OSError as error:
        raise DefectionError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DefectionError(
                f"another process is writing to {folder}; wait for it or choose another --out"
            ) from error
        yield
