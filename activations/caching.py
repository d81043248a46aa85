"""A model's residual streams into a store: the one place where reading a model and writing files meet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .batching import READING_COST, REPLYING_COST, plan_batches
from .capture import POSITION, last_token_residuals, parse_layers, tokenize_within_context
from .errors import DefectionError
from .files import Json, digest
from .generate import reply_to_batch
from .models import Model, choose_dtype
from .plan import ROWS_PER_SHARD, Plan
from .progress import progress
from .prompts import Prompt
from .shards import REPLIES, RESIDUALS, Rows
from .store import DTYPE_NAMES, NO_TOKEN, Store, open_store
from .writing import write_store

SITE = "after"
"""The residual stream after a block."""


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
    verify: bool = True,
    what: str = "Caching residual streams",
) -> Store:
    """Read the residual streams of `prompts` into the store at `path`, continuing whatever is there already.

    `dtype` is that of the file; by default the one the model computes in, which loses nothing.
    With `reply_tokens` each prompt is also continued greedily by up to that many tokens, out of the same forward pass.
    `verify` compares shards that are there already with their checksums, and recomputes those that differ.
    Under `accelerate launch` or `torchrun` the processes share the work, and each returns when the store is complete.
    Raises DefectionError when the directory holds a store of something else (the sentence says what differs), or when
    another process is writing to it.
    """
    folder = Path(path)
    if not prompts:
        raise DefectionError(f"there are no prompts to read into {folder}")
    ids = tokenize_within_context(model, prompts, reply_tokens=reply_tokens)
    # Decoding a step costs nearly the same for few rows as for many, so replies want larger batches.
    work = _Work(
        model,
        prompts,
        ids,
        parse_layers(layers, model.n_layers),
        model.dtype if dtype is None else choose_dtype(dtype),
        max_tokens or (3072 if reply_tokens else 1024),
        reply_tokens,
    )
    plan = Plan(work.about, prompts, [len(row) for row in ids], rows_per_shard)
    with progress(what, total=len(prompts), unit="prompts") as bar:
        return write_store(folder, plan, work.compute, share=process_share(), verify=verify, advance=bar)


def process_share() -> tuple[int, int]:
    """The number of this process and how many there are, as `accelerate launch` and `torchrun` tell them."""
    try:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise DefectionError(
            f"RANK={os.environ.get('RANK')!r} and WORLD_SIZE={os.environ.get('WORLD_SIZE')!r} in the environment do "
            "not say which process this is of how many; unset them or use `accelerate launch`"
        )
    return rank, world


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

    @property
    def about(self) -> Json:
        """Everything the vectors depend on."""
        identity = self.model.identity
        return {
            "model": {"name": identity.name, "fingerprint": identity.fingerprint, "template": identity.template},
            "layers": list(self.layers),
            "site": SITE,
            "position": POSITION,
            "ragged": False,
            "dtype": DTYPE_NAMES[self.dtype],
            "d_model": self.model.d_model,
            "computed_in": DTYPE_NAMES[self.model.dtype],
            "max_tokens": self.max_tokens,
            "reply_tokens": self.reply_tokens,
            "tokens_sha256": digest([list(row) for row in self.ids]),
        }

    def compute(self, shard: Rows) -> Mapping[str, Tensor]:
        """The tensors of one shard. Batches never cross shards, so each is reproducible alone (PITFALLS 15)."""
        start, end = shard
        rows = self.ids[start:end]
        values = torch.empty(len(rows), len(self.layers), self.model.d_model, dtype=torch.float32)
        replies = torch.full((len(rows), self.reply_tokens), NO_TOKEN, dtype=torch.int32)
        group_cost = REPLYING_COST if self.reply_tokens else READING_COST
        for batch in plan_batches(rows, max_tokens=self.max_tokens, group_cost=group_cost):
            if self.reply_tokens:
                said, seen = reply_to_batch(self.model, rows, batch, self.reply_tokens, self.layers)
                for row, tokens in zip(batch.rows, said, strict=True):
                    replies[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
                assert seen is not None
            else:
                seen = last_token_residuals(self.model, rows, batch, self.layers)
            values[list(batch.rows)] = seen
        return {RESIDUALS: values.to(self.dtype)} | ({REPLIES: replies} if self.reply_tokens else {})


def repair(path: str | Path, model: Model, prompts: Sequence[Prompt] | None = None) -> Store:
    """Recompute what is missing or damaged in a store, with the model it came from; what is whole stays as it is.

    `prompts` are needed where `prompts.jsonl` is damaged. Raises DefectionError when the model or the prompts are not
    those of the store.
    """
    store = open_store(path)
    head = store.manifest
    if head["position"] != POSITION or head.get("site", SITE) != SITE:
        raise DefectionError(f"{path} holds position {head['position']!r}; run the same `defection cache` to mend it")
    return cache(
        model,
        store.prompts if prompts is None else prompts,
        path,
        layers=store.layers,
        dtype=store.dtype,
        reply_tokens=head["reply_tokens"],
        max_tokens=head["max_tokens"],
        what="Repairing the store",
    )
