"""Residual vectors on disk: open, read, verify. Knows files only, no model.

A store is a directory with `manifest.json` (what was computed, row order, checksums), `prompts.jsonl` (the prompts, in
row order) and `shard-00000.safetensors` …, each with a tensor `residuals` [prompt, layer, d_model]. Where a prompt
gives several vectors the store is *ragged*: `residuals` is [token, layer, d_model], and `offsets` [prompt + 1] (int64)
says which tokens of the shard belong to which of its prompts. `writing.py` writes stores, `views.py` joins and selects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import file_digest
from ..models.hardware import DTYPE_NAMES
from ..models.sites import AFTER
from ..prompts.loading import load_prompts
from ..prompts.prompts import Prompt
from .batches import LastShard, VectorRows, Vectors
from .gathering import ends, gathered, is_run
from .manifest import MANIFEST, TABLES, Manifest, ShardRecord, StoreHead, read_manifest
from .shards import AGAIN, OFFSETS, REPLIES, RESIDUALS, Rows, map_tensors, read_header, same_bytes

if TYPE_CHECKING:
    from ..models.model import ModelIdentity
    from ..reading.residuals import Residuals

PROMPTS = "prompts.jsonl"
NO_TOKEN = -1
NAMED_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Store(VectorRows):
    """An opened store. Opening reads the head of the manifest only; vectors are memory-mapped when asked for.

    >>> len(cache(model, prompts, folder / "rows"))
    4
    """

    path: Path
    """The directory."""
    file: Manifest
    """What its manifest holds."""
    identity: ModelIdentity | None = field(default=None, compare=False, repr=False)
    """Of the model that wrote it just now; one that is opened later goes by its manifest."""

    def __repr__(self) -> str:
        state = "" if self.complete else ", not finished"
        return f"<Store {str(self.path)!r}: {len(self)} prompts, {len(self.layers)} layers of {self.d_model}{state}>"

    @property
    def manifest(self) -> StoreHead:
        """What was computed: the head of the manifest."""
        return self.file.head

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers held, ascending."""
        return tuple(self.manifest["layers"])

    @property
    def d_model(self) -> int:
        """Width of a vector."""
        return self.manifest["d_model"]

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors on disk."""
        return NAMED_DTYPES[self.manifest["dtype"]]

    @property
    def position(self) -> str:
        """The rule that chose the tokens; see `positions`."""
        return self.manifest["position"]

    @property
    def site(self) -> str:
        """Where in the block the stream was read; see `sites`."""
        return self.manifest.get("site", AFTER)

    @property
    def ragged(self) -> bool:
        """Whether a prompt may have several vectors."""
        return self.manifest.get("ragged", False)

    @property
    def complete(self) -> bool:
        """Whether every shard has been written."""
        return self.manifest["complete"]

    @cached_property
    def shards(self) -> list[ShardRecord]:
        """Each shard's `file`, `rows` (first, and one after the last), `vectors`, `bytes` and `sha256`."""
        return self.file.table("shards")

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The prompts' ids, in row order."""
        return tuple(self.file.table("ids"))

    @cached_property
    def n_tokens(self) -> tuple[int, ...]:
        """Length of each rendered prompt, in row order."""
        return tuple(self.file.table("n_tokens"))

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts, in row order; DefectionError when their file is not the one that was written."""
        if not self._prompts_intact():
            raise DefectionError(
                f"{self.path / PROMPTS} is missing or damaged; run the same `defection cache` again to write it anew"
            )
        return tuple(load_prompts(self.path / PROMPTS))

    @cached_property
    def firsts(self) -> list[int]:
        """The first row of each shard."""
        return [shard["rows"][0] for shard in self.shards]

    def __len__(self) -> int:
        """Number of prompts."""
        return self.shards[-1]["rows"][1]

    def damaged(self) -> list[str]:
        """Names of the files that are missing, unfinished or not what was written; reads every byte of the store.

        Raises DefectionError when it is the manifest that is damaged, since nothing else can then be judged.
        """
        for name in TABLES:
            self.file.table(name)
        wrong = [] if self._prompts_intact() else [PROMPTS]
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing needs no interpreter lock
            intact = list(threads.map(self._shard_intact, self.shards))
        return wrong + [shard["file"] for shard, whole in zip(self.shards, intact, strict=True) if not whole]

    def verify(self) -> None:
        """Compare every file with its checksum; DefectionError names the first that differs or is missing."""
        for name in self.damaged():
            raise DefectionError(f"{self.path / name} is missing, unfinished or damaged; {AGAIN}")

    def _prompts_intact(self) -> bool:
        file = self.path / PROMPTS
        return file.is_file() and file_digest(file) == self.manifest["prompts_sha256"]

    def _shard_intact(self, shard: ShardRecord) -> bool:
        file = self.path / shard["file"]
        header = read_header(file)
        return header is not None and header.sha256 == shard["sha256"] and same_bytes(file, header)

    def map_shard(self, number: int, *, scattered: bool = False) -> dict[str, Tensor]:
        """The tensors of one shard, memory-mapped: nothing is read but what is looked at, and nothing is copied.

        `scattered` where few places will be looked at. Raises DefectionError for an unfinished store, or a shard that
        is missing or has another header.

        Args:
            number: Of the shard, counted from 0.
            scattered: Whether few places of it will be looked at.
        """
        self._refuse_unfinished()
        shard = self.shards[number]
        tensors = map_tensors(self.path / shard["file"], shard["sha256"], scattered=scattered)
        if not self._fits(tensors, shard["rows"]):
            raise DefectionError(f"{self.path / shard['file']} does not hold what {MANIFEST} says; {AGAIN}")
        return tensors

    def _fits(self, tensors: Mapping[str, Tensor], rows: Rows) -> bool:
        """Whether a shard's tensors are of the shape and dtype that the manifest says."""
        residuals, offsets = tensors[RESIDUALS], tensors.get(OFFSETS)
        if residuals.shape[1:] != (len(self.layers), self.d_model) or residuals.dtype != self.dtype:
            return False
        count = rows[1] - rows[0]
        return len(residuals) == count if not self.ragged else offsets is not None and len(offsets) == count + 1

    def gather(self, layers: Sequence[int] | None, rows: Sequence[int], last: LastShard | None = None) -> Vectors:
        """See `VectorRows`."""
        columns = self._columns(layers)
        self._refuse_unfinished()
        outside = [row for row in (ends(rows) if is_run(rows) else rows) if not 0 <= row < len(self)]
        if outside:
            raise DefectionError(f"{self.path} has no row {outside[0]}: its rows are 0 to {len(self) - 1}")
        return gathered(self, columns, rows, last)

    def read(self, layers: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> Residuals:
        """The residuals of all prompts or some, fp32, of all layers or some, as `capture` gives them.

        Raises what `vectors` raises.

        Args:
            layers: Layer numbers; None: all that are held.
            rows: Row numbers, counted from 0; None: all.
        """
        from ..models.model import ModelIdentity
        from ..reading.residuals import Residuals

        found = self.vectors(layers, rows)
        return Residuals(
            values=found.values.float(),
            layers=self.layers if layers is None else tuple(layers),
            prompts=self.prompts if rows is None else tuple(self.prompts[row] for row in rows),
            n_tokens=self.n_tokens if rows is None else tuple(self.n_tokens[row] for row in rows),
            model=self.identity or ModelIdentity.from_json(self.manifest["model"]),
            position=self.position,
            site=self.site,
            offsets=tuple(found.offsets.tolist()) if self.ragged else None,
        )

    def read_replies(self) -> list[list[int]]:
        """Token ids of the greedy reply to each prompt, in row order.

        Raises DefectionError for an unfinished store, or when no replies were kept.
        """
        if not self.manifest.get("reply_tokens"):
            raise DefectionError(f"{self.path} holds no replies; cache it with reply_tokens")
        tables = [self.map_shard(number)[REPLIES].tolist() for number in range(len(self.shards))]
        return [[token for token in row if token != NO_TOKEN] for table in tables for row in table]

    def _refuse_unfinished(self) -> None:
        if not self.complete:
            raise DefectionError(f"{self.path} is unfinished; run the same `defection cache` again to complete it")

    def _columns(self, layers: Sequence[int] | None) -> Sequence[int]:
        if layers is None:
            return range(len(self.layers))
        missing = [layer for layer in layers if layer not in self.layers]
        if missing:
            raise DefectionError(f"{self.path} holds layers {list(self.layers)}, not {missing}")
        return [self.layers.index(layer) for layer in layers]


def open_store(path: str | Path, *, verify: bool = False) -> Store:
    """Open a store directory.

    Args:
        path: The directory.
        verify: Whether every byte is read and compared with the checksums first.

    Raises:
        DefectionError: When it is no store, is damaged, or is of a later version.

    Examples:
        >>> open_store(cache(model, prompts, folder / "kept").path).ids[:2]
        ('p0', 'p1')
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists():
        raise DefectionError(f"{folder} is not a store: it has no {MANIFEST}")
    store = Store(folder, read_manifest(folder / MANIFEST))
    if verify:
        store.verify()
    return store
