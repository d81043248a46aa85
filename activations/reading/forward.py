"""One batch through the model: the wanted vectors of the residual stream, and nothing else, come out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..basics.memory import batch_tokens, in_halves
from ..models.model import Model
from ..models.sites import AFTER, LastLayerReached, gathering, parse_site
from ..prompts.positions import LAST, parse_position
from .batching import Batch, plan_batches
from .prefixes import PrefixCache


@dataclass(frozen=True)
class Reading:
    """What is read of a prompt; as it stands it goes into a store's manifest (`dataclasses.asdict`)."""

    layers: tuple[int, ...]
    """Ascending; no block after the last one runs."""
    site: str = AFTER
    position: str = LAST
    """A rule of `positions`, brought to its one spelling."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "position", str(parse_position(self.position)))
        parse_site(self.site)

    @property
    def one_each(self) -> bool:
        """Whether every prompt gives exactly one vector."""
        return parse_position(self.position).one_each

    @property
    def mean(self) -> bool:
        """Whether that vector is the mean of several."""
        return parse_position(self.position).mean


@dataclass
class LastPrefix:
    """The prefix of the batch before, so that batches in a row which share it compute it once."""

    key: Any = None
    cache: PrefixCache | None = None
    vectors: Tensor | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Give its memory back."""
        self.key = self.cache = self.vectors = None


def automatic_batch_tokens(model: Model, reading: Reading) -> int:
    """The number of padded tokens for a batch of this model; see `memory.batch_tokens`.

    A batch passes through every device of a model that is spread over several: the fullest of them decides.
    """
    config = model.network.config.get_text_config()
    hidden = getattr(config, "intermediate_size", None) or 4 * model.d_model
    itemsize = model.dtype.itemsize
    kept = len(reading.layers) * model.d_model * itemsize if not reading.one_each or reading.mean else 0
    return min(
        batch_tokens(
            device,
            weight_bytes=weight_bytes,
            width=model.d_model,
            hidden=int(hidden),
            itemsize=itemsize,
            kept_bytes=kept,
        )
        for device, weight_bytes in model.weight_bytes.items()
    )


def plan_reading(
    model: Model, ids: Sequence[Sequence[int]], max_tokens: int, *, share_prefixes: bool = True
) -> list[Batch]:
    """The batches in which `read_batch` is to be given these rows: prefixes are shared only where the model can."""
    return plan_batches(ids, max_tokens=max_tokens, share_prefixes=share_prefixes and model.shares_prefixes, carry=True)


def modules_read(model: Model, site: str) -> Sequence[nn.Module]:
    """The module of each layer whose input or output is the stream; DefectionError when blocks have no such site."""
    return model.middles if site == "middle" else model.blocks


def read_batch(
    model: Model,
    ids: Sequence[Sequence[int]],
    batch: Batch,
    reading: Reading,
    wanted: Sequence[Sequence[int]],
    last_prefix: LastPrefix | None = None,
) -> Float[Tensor, "vector layer d_model"]:
    """The wanted vectors of one batch, on the model's device and in its dtype (a mean: fp32).

    `wanted[row]` holds the indices into `ids[row]`, as `positions.wanted_tokens` gives them. The vectors come in the
    order of `batch.rows`, each row giving one for each of its indices, or their mean if that is the reading's rule.
    Rows of equal tokens are computed once. A batch that does not fit the memory is halved, as often as need be; only
    then do its vectors differ, by rounding, from those of another run. `last_prefix` is handed from call to call.
    Raises DefectionError when a single prompt does not fit the memory.
    """
    last = last_prefix or LastPrefix()
    parts = in_halves(
        batch.rows,
        lambda rows: _read(model, ids, Batch(tuple(rows), batch.prefix_length), reading, wanted, last),
        tokens=lambda row: len(ids[row]),
        device=model.device,
        forget=last.forget,
    )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.inference_mode()
def _read(
    model: Model,
    ids: Sequence[Sequence[int]],
    batch: Batch,
    reading: Reading,
    wanted: Sequence[Sequence[int]],
    last: LastPrefix,
) -> Tensor:
    """Every wanted token has a number: those of the prefix, then those of the rows after it, padding included."""
    embedding_only = reading.site == "before" and reading.layers[-1] == 0  # no attention runs: nothing to share
    prefix = batch.prefix_length if model.shares_prefixes and not embedding_only else 0
    firsts, place = distinct_rows(ids, batch.rows)
    tails = [ids[row][prefix:] for row in firsts]
    width = max(len(tail) for tail in tails)
    numbers = torch.tensor(
        [
            token if token < prefix else prefix + place[i] * width + token - prefix
            for i, row in enumerate(batch.rows)
            for token in wanted[row]
        ]
    )
    unique, back = numbers.unique(return_inverse=True)
    shared = unique[unique < prefix]
    own = unique[len(shared) :] - prefix
    tokens = tuple(ids[firsts[0]][:prefix])
    key = (tokens, reading, tuple(shared.tolist()))
    if prefix and len(firsts) == 1 and last.key != key:
        vectors = _carrying(model, ids[firsts[0]], reading, unique, key, last)
    else:
        cache, before = _prefix(model, tokens, reading, shared, key, last) if prefix else (None, None)
        vectors = _forward(model, right_padded(model, tails), reading, own // width, own % width, cache)
        if before is not None and len(shared):
            vectors = torch.cat([before, vectors])
    if not torch.equal(back, torch.arange(len(unique))):  # rows of equal tokens, or rows that share wanted ones
        vectors = vectors[back.to(vectors.device)]
    return _means(vectors, [len(wanted[row]) for row in batch.rows]) if reading.mean else vectors


def distinct_rows(ids: Sequence[Sequence[int]], rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """One row for each different sequence of tokens, and for every row which of those stands for it."""
    number: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    place: list[int] = []
    for row in rows:
        key = tuple(ids[row])
        if key not in number:
            number[key] = len(firsts)
            firsts.append(row)
        place.append(number[key])
    return firsts, place


def right_padded(model: Model, tails: Sequence[Sequence[int]]) -> Int[Tensor, "row token"]:
    """Token ids with the padding after them, on the model's device."""
    width = max(len(tail) for tail in tails)
    pad = model.tokenizer.pad_token_id
    return torch.tensor([[*tail, *[pad] * (width - len(tail))] for tail in tails], device=model.device)


def _prefix(
    model: Model, tokens: tuple[int, ...], reading: Reading, shared: Tensor, key: Any, last: LastPrefix
) -> tuple[PrefixCache, Tensor]:
    """Keys and values of a prefix, and the wanted vectors inside it."""
    if last.key != key or last.cache is None or last.vectors is None:
        _carrying(model, tokens, reading, shared, key, last)
    assert last.cache is not None
    assert last.vectors is not None
    return last.cache, last.vectors


def _carrying(
    model: Model, row: Sequence[int], reading: Reading, wanted: Tensor, key: Any, last: LastPrefix
) -> Float[Tensor, "vector layer d_model"]:
    """The wanted vectors of a row that is computed whole, leaving behind what its prefix is to the rows after it."""
    last.forget()  # free the old one first
    cache = PrefixCache()
    inputs = torch.tensor([row], device=model.device)
    vectors = _forward(model, inputs, reading, torch.zeros_like(wanted), wanted, cache)
    tokens, _, shared = key
    cache.cut(len(tokens))
    last.vectors = vectors[: len(shared)]
    last.cache, last.key = cache, key
    return vectors


def _forward(
    model: Model, tokens: Tensor, reading: Reading, rows: Tensor, columns: Tensor, cache: PrefixCache | None
) -> Float[Tensor, "vector layer d_model"]:
    """The decoder up to the last wanted layer: no vocabulary matrix, no key-value cache of its own, and no mask.

    Padding stands after a row's last token, where causal attention never looks, and position ids stay natural for
    every family (PITFALLS 1 and 2); without a padding mask, attention takes its fastest kernel.
    """
    modules = modules_read(model, reading.site)
    rows, columns = rows.to(model.device), columns.to(model.device)
    options = {} if cache is None else {"past_key_values": cache}
    at_input = reading.site != AFTER
    gather = gathering(modules, reading.layers, rows, columns, at_input=at_input, stop=True)
    with gather as picked, contextlib.suppress(LastLayerReached):
        model.network.get_decoder()(input_ids=tokens, use_cache=cache is not None, **options)
    return torch.stack([picked[layer].to(model.device) for layer in reading.layers], dim=1)


def _means(vectors: Tensor, counts: Sequence[int]) -> Float[Tensor, "row layer d_model"]:
    """The mean of each run of `counts` vectors, in fp32 (PITFALLS 14)."""
    owners = torch.repeat_interleave(torch.tensor(counts)).to(vectors.device)
    sums = torch.zeros(len(counts), *vectors.shape[1:], device=vectors.device)
    sums.index_add_(0, owners, vectors.float())
    return sums / torch.tensor(counts, device=vectors.device)[:, None, None]
