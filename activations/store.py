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

from .batching import plan_batches
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
from .models import Model, ModelIdentity, choose_dtype
from .progress import progress
from .prompts import Prompt, load_prompts

MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"
TENSOR = "residuals"
SCHEMA_VERSION = 1
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
        if not self.complete:
            raise DefectionError(f"{self.path} is unfinished; run the same `defection cache` again to complete it")
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
    return Store(folder, manifest)


def cache(
    model: Model,
    prompts: Sequence[Prompt],
    path: str | Path,
    *,
    layers: str | Sequence[int] = "all",
    dtype: str | torch.dtype | None = None,
    max_tokens: int = 1024,
    rows_per_shard: int = ROWS_PER_SHARD,
    what: str = "Caching residual streams",
) -> Store:
    """Read the residual streams of `prompts` into the store at `path`, continuing whatever is there already.

    `dtype` is that of the file; by default the one the model computes in, which loses nothing.
    Raises DefectionError when the directory holds a store of something else (the sentence says what differs), or when
    another process is writing to it.
    """
    folder = Path(path)
    ids = tokenize_within_context(model, prompts)
    chosen = parse_layers(layers, model.n_layers)
    kept_as = model.dtype if dtype is None else choose_dtype(dtype)
    manifest = _plan(model, prompts, ids, chosen, kept_as, max_tokens, rows_per_shard)
    with _sole_writer(folder):
        manifest = _adopt(folder, manifest)
        if not (folder / PROMPTS).exists():
            write_jsonl(folder / PROMPTS, (prompt.to_json() for prompt in prompts))
        todo = [shard for shard in manifest["shards"] if not _intact(folder, shard)]
        if not todo:
            return Store(folder, manifest)
        write_json(folder / MANIFEST, manifest)
        with progress(what, total=sum(end - start for start, end in (s["rows"] for s in todo)), unit="prompts") as bar:
            for shard in todo:
                _write_shard(model, prompts, ids, chosen, kept_as, folder, shard, max_tokens)
                write_json(folder / MANIFEST, manifest)
                bar(shard["rows"][1] - shard["rows"][0])
    return Store(folder, manifest)


def _plan(
    model: Model,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    layers: Sequence[int],
    dtype: torch.dtype,
    max_tokens: int,
    rows_per_shard: int,
) -> Json:
    """The manifest of a store that is still empty. Its key covers everything the vectors depend on (PITFALLS 12)."""
    computed: Json = {
        "model": {
            "name": model.identity.name,
            "fingerprint": model.identity.fingerprint,
            "template": model.identity.template,
        },
        "layers": list(layers),
        "position": POSITION,
        "dtype": DTYPE_NAMES[dtype],
        "computed_in": DTYPE_NAMES[model.dtype],
        "max_tokens": max_tokens,
        "tokens_sha256": digest([list(row) for row in ids]),
    }
    nameless = {**computed, "model": {k: v for k, v in computed["model"].items() if k != "name"}}
    starts = range(0, len(prompts), rows_per_shard)
    return {
        "schema_version": SCHEMA_VERSION,
        "key": digest(nameless),
        **computed,
        "d_model": model.d_model,
        "ids": [prompt.id for prompt in prompts],
        "n_tokens": [len(row) for row in ids],
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
    }
    differs = [name for field, name in names.items() if found.get(field) != planned[field]]
    raise DefectionError(
        f"{folder} already holds residuals of another computation (different {', '.join(differs)}); "
        "choose another --out or remove it"
    )


def _write_shard(
    model: Model,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
    layers: Sequence[int],
    dtype: torch.dtype,
    folder: Path,
    shard: dict[str, Any],
    max_tokens: int,
) -> None:
    """Compute one shard and record its checksum. Batches never cross shards, so each is reproducible alone."""
    start, end = shard["rows"]
    rows = ids[start:end]
    values = torch.empty(end - start, len(layers), model.d_model, dtype=torch.float32)
    for batch in plan_batches(rows, max_tokens=max_tokens):
        values[list(batch.rows)] = last_token_residuals(model, rows, batch, layers)
    refuse_non_finite(values, prompts[start:end], layers)
    target = folder / shard["file"]
    write_tensors(target, {TENSOR: values.to(dtype)})
    shard["sha256"] = file_digest(target)


def _intact(folder: Path, shard: dict[str, Any]) -> bool:
    file = folder / shard["file"]
    return bool(shard["sha256"]) and file.exists() and file_digest(file) == shard["sha256"]


def _read_shard(file: Path, columns: Sequence[int]) -> torch.Tensor:
    try:
        with safe_open(str(file), framework="pt") as opened:
            return opened.get_slice(TENSOR)[:, list(columns)].float()
    except (SafetensorError, FileNotFoundError) as error:
        raise DefectionError(
            f"{file} is missing or damaged ({error}); run the same `defection cache` again to recompute it"
        ) from error


@contextlib.contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the store's lock; the system drops it when the process dies, however it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise DefectionError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DefectionError(f"another process is writing to {folder}; wait for it or choose another --out") from error
        yield
