"""What a store will hold, before there is a vector; and whether a store, or some tensors, are what was planned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import Json, digest, jsonl
from ..prompts.prompts import Prompt
from .batches import BATCH_ROWS
from .manifest import STORE_SCHEMA, Manifest, Tables
from .shards import OFFSETS, RESIDUALS, Header, Rows
from .store import NAMED_DTYPES

ROWS_PER_SHARD = 512
"""At least, where each prompt has one vector: prompts are batched within a shard."""
VECTORS_PER_SHARD = 4096
"""Of a ragged store's shard, on average: memory holds three shards."""
SHARD_BYTES = 64 * 2**20
SHARD_TOKENS = 1 << 16
"""A shard of one vector a prompt grows to so many bytes, unless it has so many tokens before.

From a cold disk, files of 18 MB are read at four fifths of the speed of one large file, files of 64 MB at all of it.
What a kill costs is the shards in the making, hence the tokens.
"""
OF_MODEL = {
    "fingerprint": "model",
    "template": "chat template or tokenizer",
    "date": "date in the chat template",
}
DIFFERENCES = {
    "layers": "layers",
    "site": "site",
    "position": "position",
    "dtype": "dtype",
    "computed_in": "dtype of the forward pass",
    "tokens_sha256": "prompts",
    "wanted_sha256": "tokens read of the prompts",
    "max_tokens": "batch size",
    "reply_tokens": "length of replies",
    "d_model": "width",
    "ragged": "number of vectors a prompt",
}


@dataclass(frozen=True)
class StorePlan:
    """What a store will hold, before there is a vector."""

    about: Json
    """Everything the vectors depend on: `model` (name, fingerprint, template), `layers`, `position`, `dtype`,
    `d_model`, `tokens_sha256` … Goes into the manifest as it is."""
    prompts: Sequence[Prompt]
    n_tokens: Sequence[int]
    rows_per_shard: int = ROWS_PER_SHARD

    @cached_property
    def key(self) -> str:
        """A hash over all of `about`, except what the model is called."""
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
            "schema_version": STORE_SCHEMA,
            "key": self.key,
            **self.about,
            "n_prompts": len(self.prompts),
            "n_vectors": None,
            "complete": False,
            "prompts_sha256": hashlib.sha256(self.prompt_lines).hexdigest(),
        }

    def tables(self, rows: Sequence[Rows], headers: Sequence[Header | None]) -> Tables:
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

    def refuse_other(self, folder: Path, found: Manifest) -> None:
        """DefectionError that says in what the store at `folder` is not the one planned, if it is not."""
        same_ids = found.table("ids") == [prompt.id for prompt in self.prompts]
        if found.head["key"] == self.key and same_ids:
            return
        model, own = found.head["model"], self.about["model"]
        differs = [name for field, name in OF_MODEL.items() if model.get(field) != own.get(field)]
        differs += [name for field, name in DIFFERENCES.items() if found.head.get(field) != self.about.get(field)]
        differs += [] if same_ids else ["prompt ids"]
        raise DefectionError(
            f"{folder} already holds residuals of another computation (different {', '.join(differs)}); "
            "choose another --out or remove it"
        )

    def checked(self, rows: Rows, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of some rows, if they are what is planned.

        Raises DefectionError for another shape, dtype or kind, and for a vector that is not finite, naming prompt and
        layer.
        """
        values, offsets, count = tensors[RESIDUALS], tensors.get(OFFSETS), rows[1] - rows[0]
        if bool(self.about.get("ragged")) != (offsets is not None):
            raise DefectionError("a ragged store, and no other, needs the tensor 'offsets' [prompt + 1]")
        if offsets is not None:
            rises = offsets.dtype == torch.int64 and len(offsets) == count + 1 and bool((offsets.diff() >= 0).all())
            if not rises or offsets[0] != 0:
                raise DefectionError(f"offsets of rows {rows[0]} to {rows[1]} must be {count + 1} rising int64 from 0")
        shape = (count if offsets is None else int(offsets[-1]), len(self.about["layers"]), self.about["d_model"])
        if tuple(values.shape) != shape or values.dtype != NAMED_DTYPES[self.about["dtype"]]:
            raise DefectionError(
                f"residuals of rows {rows[0]} to {rows[1]} are {values.dtype} {tuple(values.shape)}; the plan says "
                f"{self.about['dtype']} {shape}"
            )
        if values.numel() and not torch.stack(values.aminmax()).isfinite().all():  # many times faster than all of them
            vector, column = (int(i) for i in (~values.isfinite().all(dim=-1)).nonzero()[0])
            row = vector if offsets is None else int(torch.searchsorted(offsets, vector, right=True)) - 1
            raise DefectionError(
                f"the residual of prompt {self.prompts[rows[0] + row].id!r} at layer {self.about['layers'][column]} is "
                "not finite; the model overflows in this dtype, so compute in fp32 (--compute-dtype fp32)"
            )
        return tensors


def shard_rows(counts: Sequence[int], n_tokens: Sequence[int], vector_bytes: int) -> int:
    """How many rows a shard gets, given each row's vectors and tokens, and the bytes of a vector at all its layers.

    Where there are several shards, each is whole batches of a reader. It depends on nothing else, so every process of a
    launch, and every run that continues, has the same shards.
    """
    rows, vectors = len(counts), max(1, sum(counts))
    if vectors != rows:
        return max(1, min(ROWS_PER_SHARD, VECTORS_PER_SHARD * rows // vectors))
    most = min(SHARD_BYTES // vector_bytes, SHARD_TOKENS * rows // max(1, sum(n_tokens)))
    return max(ROWS_PER_SHARD, most // BATCH_ROWS * BATCH_ROWS)


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def _entry(number: int, rows: Rows, header: Header | None) -> Json:
    return {
        "file": shard_name(number),
        "rows": list(rows),
        "vectors": header and header.vectors,
        "bytes": header and header.bytes,
        "sha256": header and header.sha256,
    }
