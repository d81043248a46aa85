"""A model's residual streams into a store: the one place where reading a model and writing files meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import Json, digest
from ..basics.processes import this_process
from ..basics.progress import progress
from ..models.hardware import choose_dtype
from ..models.model import Model
from ..models.sites import AFTER
from ..prompts.positions import LAST, parse_position, wanted_tokens
from ..prompts.prompts import Prompt
from ..reading.capture import Landing, parse_layers, tokenize_within_context, up_to_wanted
from ..reading.forward import LastPrefix, Reading, automatic_batch_tokens, modules_read, plan_reading, read_batch
from ..reading.generate import plan_replies, reply_to_batch
from ..reading.residuals import offsets_of
from .manifest import MANIFEST, read_manifest
from .plan import Plan, shard_rows
from .shards import OFFSETS, REPLIES, RESIDUALS, Rows
from .store import DTYPE_NAMES, NO_TOKEN, Store, open_store
from .writing import write_store

REPLYING_TOKENS = 3072
"""Padded tokens of a batch that is replied to: a step costs nearly the same for few rows as for many."""


def cache(
    model: Model,
    prompts: Sequence[Prompt],
    path: str | Path,
    *,
    layers: str | Sequence[int] | slice = "all",
    site: str = AFTER,
    position: str = LAST,
    dtype: str | torch.dtype | None = None,
    reply_tokens: int = 0,
    max_tokens: int | None = None,
    rows_per_shard: int | None = None,
    verify: bool = True,
    what: str = "Caching residual streams",
) -> Store:
    """Read the residual streams of `prompts` into the store at `path`, continuing whatever is there already.

    `layers`, `site` and `position` are those of `capture`; a position that gives several vectors a prompt (`all`,
    `response`, a span) makes a ragged store.
    `dtype` is that of the file; by default the one the model computes in, which loses nothing but of a mean.
    With `reply_tokens` each prompt is also continued greedily by up to that many tokens, out of the same forward pass,
    which reads the last token after the block.
    `max_tokens` bounds the padded tokens of a batch. By default a store that is there already keeps its own, and for
    a new one the device's memory decides.
    `verify` compares shards that are there already with their checksums, and recomputes those that differ.
    Under `accelerate launch` or `torchrun` the processes share the work, and each returns when the store is complete.
    Raises DefectionError before anything is written for a prompt that is too long or to which `position` does not
    apply, and for a block without the site; when the directory holds a store of something else (the sentence says what
    differs); and when another process is writing to it.
    """
    folder = Path(path)
    if not prompts:
        raise DefectionError(f"there are no prompts to read into {folder}")
    reading = Reading(parse_layers(layers, model.n_layers), site, position)
    if reply_tokens and (reading.site, reading.position) != (AFTER, LAST):
        raise DefectionError(
            f"replies are written while the last token is read after the block, so reply_tokens does not go with "
            f"position {reading.position} {reading.site} the block; cache without it"
        )
    modules_read(model, reading.site)
    ids = tokenize_within_context(model, prompts, reply_tokens=reply_tokens)
    work = _Work(
        model,
        prompts,
        ids,
        wanted_tokens(reading.position, model.tokenizer, prompts, ids),
        reading,
        model.dtype if dtype is None else choose_dtype(dtype),
        max_tokens or _batch_tokens(folder, model, reading, reply_tokens),
        reply_tokens,
    )
    n_tokens = [len(row) for row in ids]
    rows = rows_per_shard or shard_rows(work.counts, [n + reply_tokens for n in n_tokens], work.vector_bytes)
    plan = Plan(work.about, prompts, n_tokens, rows)
    process = this_process()
    with progress(what, total=len(prompts), unit="prompts") as bar:
        return write_store(folder, plan, work.compute, share=(process.rank, process.size), verify=verify, advance=bar)


def _batch_tokens(folder: Path, model: Model, reading: Reading, reply_tokens: int) -> int:
    """What the store was begun with, since on another device memory says otherwise (PITFALLS 15)."""
    begun = read_manifest(folder / MANIFEST).head.get("max_tokens") if (folder / MANIFEST).exists() else None
    return begun or (REPLYING_TOKENS if reply_tokens else automatic_batch_tokens(model, reading))


@dataclass(frozen=True)
class _Work:
    """What is to be computed."""

    model: Model
    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    wanted: Sequence[Sequence[int]]
    reading: Reading
    dtype: torch.dtype
    max_tokens: int
    reply_tokens: int

    @property
    def about(self) -> Json:
        """Everything the vectors depend on."""
        identity = self.model.identity
        about = {
            "model": {"name": identity.name, "fingerprint": identity.fingerprint, "template": identity.template},
            **asdict(self.reading),
            "layers": list(self.reading.layers),
            "ragged": not self.reading.one_each,
            "dtype": DTYPE_NAMES[self.dtype],
            "d_model": self.model.d_model,
            "computed_in": DTYPE_NAMES[self.model.dtype],
            "max_tokens": self.max_tokens,
            "reply_tokens": self.reply_tokens,
            "tokens_sha256": digest([list(row) for row in self.ids]),
        }
        if parse_position(self.reading.position).needs_text:  # equal tokens may be parted into messages otherwise
            about["wanted_sha256"] = digest([list(tokens) for tokens in self.wanted])
        return about

    @property
    def counts(self) -> list[int]:
        """How many vectors each prompt gives."""
        return [1] * len(self.ids) if self.reading.one_each else [len(tokens) for tokens in self.wanted]

    @property
    def vector_bytes(self) -> int:
        """On disk, of one prompt's vector at all layers."""
        return len(self.reading.layers) * self.model.d_model * self.dtype.itemsize

    def compute(self, shard: Rows) -> Mapping[str, Tensor]:
        """The tensors of one shard. Batches never cross shards, so each is reproducible alone (PITFALLS 15)."""
        rows = slice(*shard)
        wanted, offsets = self.wanted[rows], offsets_of(self.counts[rows])
        needed = up_to_wanted(self.ids[rows], wanted)
        values = torch.empty(offsets[-1], len(self.reading.layers), self.model.d_model, dtype=self.dtype)
        replies = torch.full((len(needed), self.reply_tokens), NO_TOKEN, dtype=torch.int32)
        landing, last_prefix = Landing(values), LastPrefix()
        plan = plan_replies if self.reply_tokens else plan_reading
        for batch in plan(self.model, needed, self.max_tokens):
            if self.reply_tokens:
                said, read = reply_to_batch(self.model, needed, batch, self.reply_tokens, self.reading.layers)
                for row, tokens in zip(batch.rows, said, strict=True):
                    replies[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
                assert read is not None
                seen = read
            else:
                seen = read_batch(self.model, needed, batch, self.reading, wanted, last_prefix)
            landing.put([place for row in batch.rows for place in range(offsets[row], offsets[row + 1])], seen)
        landing.settle()
        tensors = {RESIDUALS: values}
        if self.reply_tokens:
            tensors[REPLIES] = replies
        if not self.reading.one_each:
            tensors[OFFSETS] = torch.tensor(offsets)
        return tensors


def repair(path: str | Path, model: Model, prompts: Sequence[Prompt] | None = None) -> Store:
    """Recompute what is missing or damaged in a store, with the model it came from; what is whole stays as it is.

    `prompts` are needed where `prompts.jsonl` is damaged. Raises DefectionError when the model or the prompts are not
    those of the store.
    """
    store = open_store(path)
    head = store.manifest
    return cache(
        model,
        store.prompts if prompts is None else prompts,
        path,
        layers=store.layers,
        site=store.site,
        position=store.position,
        dtype=store.dtype,
        reply_tokens=head["reply_tokens"],
        what="Repairing the store",
    )
