"""The forward pass of whoever reads, replies, measures or trains: prefixes once, padding behind, no vocabulary matrix.

`hidden_states` is the pass itself, `read_batch` takes out of it what is wanted of some prompts, and `token_losses` and
`final_states` turn that into the model's own predictions (`own_logits`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Cache, PreTrainedModel

from ..basics.memory import batch_tokens, in_halves
from ..models.blocks import decoder_of
from ..models.logits import own_logits
from ..models.model import Model
from ..models.modes import in_use
from ..models.sites import AFTER, LastLayerReached, gathering, parse_site
from ..prompts.positions import LAST, parse_position
from .batching import Batch, plan_batches
from .prefixes import PrefixCache

LOGITS_AT_ONCE = 256
"""Tokens whose logits are held together: each costs a row of the vocabulary's length."""


@dataclass(frozen=True)
class Reading:
    """What is read of a prompt; as it stands it goes into a store's manifest (`dataclasses.asdict`).

    Examples:
        >>> Reading((0, 2), position="last")
        Reading(layers=(0, 2), site='after', position='last')
    """

    layers: tuple[int, ...]
    """Ascending; no block after the last one runs."""
    site: str = AFTER
    """Where in a block, as `parse_site` knows it: before, in the middle, or after."""
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


PrefixKey = tuple[tuple[int, ...], "Reading | None", tuple[int, ...]]
"""A prefix's tokens, what is read, and at which of them."""


@dataclass
class LastPrefix:
    """The prefix of the batch before, so that batches in a row which share it compute it once."""

    key: PrefixKey | None = None
    cache: PrefixCache | None = None
    vectors: Tensor | None = field(default=None, repr=False)

    def forget(self) -> None:
        """Give its memory back."""
        self.key = self.cache = self.vectors = None


def hidden_states(
    network: PreTrainedModel, tokens: Int[Tensor, "row token"], cache: Cache | None = None
) -> Float[Tensor, "row token d_model"]:
    """The decoder's last hidden states, after the final norm; `own_logits` makes logits of them.

    Pad on the right (`right_padded`): there causal attention never looks, position ids stay natural for every family,
    and without a padding mask attention takes its fastest kernel. A `PrefixCache` is filled with
    the first row's keys and values, and later stands before every row; only where `Model.shares_prefixes`.
    """
    options = {} if cache is None else {"past_key_values": cache}
    states: Tensor = decoder_of(network)(input_ids=tokens, use_cache=cache is not None, **options).last_hidden_state
    return states


def label_losses(
    network: PreTrainedModel, states: Float[Tensor, "token d_model"], labels: Int[Tensor, "token"]
) -> Float[Tensor, "token"]:
    """Negative log-likelihood (nats, fp32) of the token that follows each final hidden state; with its gradient."""
    logits = own_logits(network, states).float()
    return cross_entropy(logits, labels.to(logits.device), reduction="none")


def right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "row token"]:
    """Token ids with padding after them, which nothing looks at, so that any token will do."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)


def automatic_batch_tokens(model: Model, reading: Reading | None) -> int:
    """The number of padded tokens for a batch of this model; see `memory.batch_tokens`.

    A batch passes through every device of a model that is spread over several: the fullest of them decides.
    """
    config = model.network.config.get_text_config()
    hidden = getattr(config, "intermediate_size", None) or 4 * model.d_model
    itemsize = model.dtype.itemsize
    several = reading is not None and (reading.mean or not reading.one_each)
    kept = len(reading.layers) * model.d_model * itemsize if reading and several else 0
    return min(
        batch_tokens(
            device,
            weight_bytes=weight_bytes,
            width=model.d_model,
            hidden=int(max(hidden) if isinstance(hidden, list | tuple) else hidden),
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
    reading: Reading | None,
    wanted: Sequence[Sequence[int]],
    last_prefix: LastPrefix | None = None,
) -> Float[Tensor, "vector layer d_model"] | Float[Tensor, "vector d_model"]:
    """The wanted vectors of one batch, on the model's device and in its dtype (a mean: fp32).

    Without a `reading` they are the final hidden states [vector, d_model].

    `wanted[row]` holds the indices into `ids[row]`, as `positions.wanted_tokens` gives them. The vectors come in the
    order of `batch.rows`, each row giving one for each of its indices, or their mean if that is the reading's rule.
    Rows of equal tokens are computed once. A batch that does not fit the memory is halved, as often as need be; only
    then do its vectors differ, by rounding, from those of another run. `last_prefix` is handed from call to call.
    Raises DefectionError when a single prompt does not fit the memory.
    """
    last = last_prefix or LastPrefix()
    with in_use(model.network):
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
    reading: Reading | None,
    wanted: Sequence[Sequence[int]],
    last: LastPrefix,
) -> Tensor:
    """Every wanted token has a number: those of the prefix, then those of the rows after it, padding included."""
    # Before the first block no attention runs: nothing to share.
    embedding_only = reading is not None and reading.site == "before" and reading.layers[-1] == 0
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
        vectors = forward(model, right_padded(tails, model.device), reading, own // width, own % width, cache)
        if before is not None and len(shared):
            vectors = torch.cat([before, vectors])
    if not torch.equal(back, torch.arange(len(unique))):  # rows of equal tokens, or rows that share wanted ones
        vectors = vectors[back.to(vectors.device)]
    return _means(vectors, [len(wanted[row]) for row in batch.rows]) if reading and reading.mean else vectors


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


def _prefix(
    model: Model, tokens: tuple[int, ...], reading: Reading | None, shared: Tensor, key: PrefixKey, last: LastPrefix
) -> tuple[PrefixCache, Tensor]:
    """Keys and values of a prefix, and the wanted vectors inside it."""
    if last.key != key or last.cache is None or last.vectors is None:
        _carrying(model, tokens, reading, shared, key, last)
    assert last.cache is not None
    assert last.vectors is not None
    return last.cache, last.vectors


def _carrying(
    model: Model, row: Sequence[int], reading: Reading | None, wanted: Tensor, key: PrefixKey, last: LastPrefix
) -> Float[Tensor, "vector layer d_model"]:
    """The wanted vectors of a row that is computed whole, leaving behind what its prefix is to the rows after it."""
    last.forget()  # free the old one first
    cache = PrefixCache()
    inputs = torch.tensor([row], device=model.device)
    vectors = forward(model, inputs, reading, torch.zeros_like(wanted), wanted, cache)
    tokens, _, shared = key
    cache.cut(len(tokens))
    last.vectors = vectors[: len(shared)]
    last.cache, last.key = cache, key
    return vectors


def forward(
    model: Model, tokens: Tensor, reading: Reading | None, rows: Tensor, columns: Tensor, cache: PrefixCache | None
) -> Tensor:
    """What is read at those places, after which no further block runs."""
    rows, columns = rows.to(model.device), columns.to(model.device)
    if reading is None:
        states = hidden_states(model.network, tokens, cache)
        return states[rows.to(states.device), columns.to(states.device)]
    modules, at_input = modules_read(model, reading.site), reading.site != AFTER
    gather = gathering(modules, reading.layers, rows, columns, at_input=at_input, stop=True)
    with gather as picked, contextlib.suppress(LastLayerReached):
        hidden_states(model.network, tokens, cache)
    return torch.stack([picked[layer].to(model.device) for layer in reading.layers], dim=1)


def _means(vectors: Tensor, counts: Sequence[int]) -> Float[Tensor, "row layer d_model"]:
    """The mean of each run of `counts` vectors, in fp32."""
    owners = torch.repeat_interleave(torch.tensor(counts)).to(vectors.device)
    sums = torch.zeros(len(counts), *vectors.shape[1:], device=vectors.device)
    sums.index_add_(0, owners, vectors.float())
    return sums / torch.tensor(counts, device=vectors.device)[:, None, None]


def final_states(
    model: Model, ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], *, max_tokens: int | None = None
) -> Iterator[tuple[tuple[int, ...], Float[Tensor, "vector d_model"]]]:
    """The final hidden states at the wanted tokens, a batch at a time: its rows, and their vectors row after row."""
    needed, last = up_to_wanted(ids, wanted), LastPrefix()
    for batch in plan_reading(model, needed, max_tokens or automatic_batch_tokens(model, None)):
        yield batch.rows, read_batch(model, needed, batch, None, wanted, last)


@torch.inference_mode()
def token_losses(
    model: Model,
    ids: Sequence[Sequence[int]],
    predicted: Sequence[range],
    *,
    max_tokens: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Float[Tensor, "token"]]:
    """What each token `predicted[row]` of `ids[row]` costs the model after all before it: nats, fp64, in host memory.

    The first token of a row, which nothing predicts, cannot be asked for. `advance` hears of rows that are done.
    """
    found = [torch.empty(0, dtype=torch.float64)] * len(ids)
    asked = [row for row, tokens in enumerate(predicted) if tokens]
    before = [range(predicted[row].start - 1, predicted[row].stop - 1) for row in asked]
    for batch, states in final_states(model, [ids[row] for row in asked], before, max_tokens=max_tokens):
        rows = [asked[number] for number in batch]
        targets = torch.tensor([ids[row][token] for row in rows for token in predicted[row]], device=states.device)
        some = zip(states.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
        losses = torch.cat([label_losses(model.network, *part) for part in some])
        parts = losses.double().cpu().split([len(predicted[row]) for row in rows])
        for row, part in zip(rows, parts, strict=True):
            found[row] = part
        advance(len(rows))
    return found


def up_to_wanted(ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each prompt's tokens up to the last wanted one: in a causal model what comes after changes nothing before."""
    return [list(row[: tokens[-1] + 1]) for row, tokens in zip(ids, wanted, strict=True)]
