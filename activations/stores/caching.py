"""A model's residual streams into a store: the one place where reading a model and writing files meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import Json, digest
from ..basics.processes import this_process
from ..basics.progress import progress
from ..models.hardware import DTYPE_NAMES, choose_dtype
from ..models.model import Model
from ..models.sites import AFTER
from ..models.wrap import ModelLike, as_model
from ..prompts.loading import PromptsLike, refuse_repeated_ids
from ..prompts.positions import LAST, parse_position
from ..prompts.rendered import rendered
from ..reading.capture import parse_layers, read_into
from ..reading.forward import Reading, automatic_batch_tokens, modules_read
from ..reading.generate import plan_replies, reply_to_batch
from ..reading.selection import Selection, select
from .manifest import MANIFEST, read_manifest
from .plan import StorePlan, shard_rows
from .shards import OFFSETS, REPLIES, RESIDUALS, Rows
from .store import NO_TOKEN, Store, open_store
from .writing import write_store

REPLYING_TOKENS = 3072
"""Padded tokens of a batch that is replied to: a step costs nearly the same for few rows as for many."""


def cache(
    model: ModelLike,
    prompts: PromptsLike,
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

    Under `accelerate launch` or `torchrun` the processes share the work, and each returns when the store is complete.

    Args:
        model: A `Model`, or a Hugging Face model and its tokenizer in a pair.
        prompts: Whatever `load_prompts` takes, in the order of the store's rows.
        path: The directory; it is made, or holds this very store already, whole or in part.
        layers: As in `capture`.
        site: As in `capture`.
        position: As in `capture`; one that gives several vectors a prompt (`all`, `response`, a span) makes a ragged
            store.
        dtype: Of the file, `fp32` or `bf16`; by default the one the model computes in, which loses nothing but of a
            mean.
        reply_tokens: Up to how many tokens each prompt is also continued by, greedily, out of the same forward pass,
            which reads the last token after the block; 0: no replies.
        max_tokens: Padded tokens of a batch at most. By default a store that is there already keeps its own, and for a
            new one the device's memory decides.
        rows_per_shard: Prompts a file of the store; by default as many as make files of a good size.
        verify: Whether shards that are there already are compared with their checksums, and recomputed where they
            differ.
        what: The words before the progress bar.

    Returns:
        The store, complete and open.

    Raises:
        DefectionError: Before anything is written, for an id that two prompts have, a prompt that is too long or to
            which `position` does not apply, and a block without the site; when the directory holds a store of something
            else (the sentence says what differs); and when another process is writing to it.

    Examples:
        >>> cache(model, prompts, folder / "store", layers=[1, 3]).read()
        <Residuals 4×2×32 (vector, layer, d_model), float32, of 'in memory', last>
    """
    model, folder = as_model(model), Path(path)
    reading = Reading(parse_layers(layers, model.n_layers), site, position)
    if reply_tokens and (reading.site, reading.position) != (AFTER, LAST):
        raise DefectionError(
            f"replies are written while the last token is read after the block, so reply_tokens does not go with "
            f"position {reading.position} {reading.site} the block; cache without it"
        )
    modules_read(model, reading.site)
    if reply_tokens < 0 or (rows_per_shard is not None and rows_per_shard < 1):
        raise DefectionError(
            f"a store has 0 reply tokens or more and 1 row a shard or more, not {reply_tokens} and {rows_per_shard}"
        )
    given = rendered(model, prompts, reply_tokens=reply_tokens)
    if not given:
        raise DefectionError(f"there are no prompts to read into {folder}")
    refuse_repeated_ids((row.prompt for row in given), str(folder))
    ids = [row.ids for row in given]
    work = _Work(
        model,
        ids,
        select(reading, given),
        model.dtype if dtype is None else choose_dtype(dtype),
        max_tokens or _batch_tokens(folder, model, reading, reply_tokens),
        reply_tokens,
        _fingerprint(folder, model),
    )
    n_tokens = [len(row) for row in ids]
    rows = rows_per_shard or shard_rows(work.selection.counts, [n + reply_tokens for n in n_tokens], work.vector_bytes)
    plan = StorePlan(work.about, [row.prompt for row in given], n_tokens, rows)
    process = this_process()
    with progress(what, total=len(given), unit="prompts") as bar:
        share = (process.rank, process.size)
        store = write_store(folder, plan, work.compute, share=share, verify=verify, advance=bar)
    return replace(store, identity=model.identity)


def _batch_tokens(folder: Path, model: Model, reading: Reading, reply_tokens: int) -> int:
    """What the store was begun with, since on another device memory says otherwise."""
    begun = _begun(folder).get("max_tokens")
    return begun or (REPLYING_TOKENS if reply_tokens else automatic_batch_tokens(model, reading))


def _fingerprint(folder: Path, model: Model) -> str:
    """What the store was begun with, where an earlier version gave these weights another name."""
    begun = _begun(folder).get("model", {}).get("fingerprint")
    return begun if begun and model.identity.has_weights(begun) else model.identity.fingerprint


def _begun(folder: Path) -> Json:
    return {**read_manifest(folder / MANIFEST).head} if (folder / MANIFEST).exists() else {}


@dataclass(frozen=True)
class _Work:
    """What is to be computed."""

    model: Model
    ids: Sequence[Sequence[int]]
    """All tokens of each prompt."""
    selection: Selection
    dtype: torch.dtype
    max_tokens: int
    reply_tokens: int
    fingerprint: str

    @property
    def about(self) -> Json:
        """Everything the vectors depend on."""
        identity, reading = self.model.identity, self.selection.reading
        about = {
            "model": identity.to_json() | {"fingerprint": self.fingerprint},
            **asdict(reading),
            "layers": list(reading.layers),
            "ragged": not reading.one_each,
            "dtype": DTYPE_NAMES[self.dtype],
            "d_model": self.model.d_model,
            "computed_in": self.model.dtype_name,
            "max_tokens": self.max_tokens,
            "reply_tokens": self.reply_tokens,
            "tokens_sha256": digest([list(row) for row in self.ids]),
        }
        if parse_position(reading.position).needs_text:  # equal tokens may be parted into messages otherwise
            about["wanted_sha256"] = digest([list(tokens) for tokens in self.selection.wanted])
        return about

    @property
    def vector_bytes(self) -> int:
        """On disk, of one prompt's vector at all layers."""
        return len(self.selection.reading.layers) * self.model.d_model * self.dtype.itemsize

    def compute(self, shard: Rows) -> Mapping[str, Tensor]:
        """The tensors of one shard. Batches never cross shards, so each is reproducible alone."""
        part = self.selection.part(*shard)
        layers = part.reading.layers
        values = torch.empty(part.offsets[-1], len(layers), self.model.d_model, dtype=self.dtype)
        tensors = {RESIDUALS: values}
        if self.reply_tokens:
            replies = torch.full((len(part.ids), self.reply_tokens), NO_TOKEN, dtype=torch.int32)
            for batch in plan_replies(self.model, part.ids, self.max_tokens):
                said, read = reply_to_batch(self.model, part.ids, batch, self.reply_tokens, layers)
                for row, tokens in zip(batch.rows, said, strict=True):
                    replies[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
                assert read is not None
                values[list(batch.rows)] = read.to(self.dtype)
            tensors[REPLIES] = replies
        else:
            read_into(values, self.model, part, self.max_tokens)
        if not part.reading.one_each:
            tensors[OFFSETS] = torch.tensor(part.offsets)
        return tensors


def repair(path: str | Path, model: ModelLike, prompts: PromptsLike | None = None) -> Store:
    """Recompute what is missing or damaged in a store, with the model it came from; what is whole stays as it is.

    Args:
        path: The store's directory.
        model: The model it was written from, with the same weights and template.
        prompts: Needed where the store's own `prompts.jsonl` is damaged.

    Raises:
        DefectionError: When the model or the prompts are not those of the store.

    Examples:
        >>> store = cache(model, prompts, folder / "mended")
        >>> (folder / "mended" / "shard-00000.safetensors").unlink()
        >>> repair(folder / "mended", model).damaged()
        []
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
