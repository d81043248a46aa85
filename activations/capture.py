"""Residual streams at the last token of each prompt, at every layer, for the price of the bare forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from .batching import Batch, plan_batches
from .chat import tokenize
from .errors import DefectionError
from .models import Model, ModelIdentity
from .progress import progress
from .prompts import Prompt

POSITION = "last"
"""The last token of the rendered prompt: the one whose residual predicts the first token of the reply."""


@dataclass(frozen=True)
class Residuals:
    """Residual vectors of some prompts, and everything a probe must know about them."""

    values: Float[Tensor, "prompt layer d_model"]
    layers: tuple[int, ...]
    """The block whose output each `values[:, i]` is (0 … n_layers−1, before the final norm)."""
    prompts: tuple[Prompt, ...]
    n_tokens: tuple[int, ...]
    """Length of each rendered prompt."""
    model: ModelIdentity
    position: str = POSITION

    def __post_init__(self) -> None:
        if self.values.shape[:2] != (len(self.prompts), len(self.layers)):
            raise DefectionError(
                f"residuals of shape {tuple(self.values.shape)} do not fit {len(self.prompts)} prompts "
                f"and {len(self.layers)} layers"
            )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ids(self) -> tuple[str, ...]:
        """The prompts' ids, in row order."""
        return tuple(prompt.id for prompt in self.prompts)

    def select(self, rows: Sequence[int]) -> Residuals:
        """Some of the rows, in the order given."""
        picked = list(rows)
        return replace(
            self,
            values=self.values[picked],
            prompts=tuple(self.prompts[row] for row in picked),
            n_tokens=tuple(self.n_tokens[row] for row in picked),
        )

    def at(self, layer: int) -> Float[Tensor, "prompt d_model"]:
        """The vectors of one layer."""
        if layer not in self.layers:
            raise DefectionError(f"layer {layer} was not captured; these residuals hold {_spell(self.layers)}")
        return self.values[:, self.layers.index(layer)]


def capture(
    model: Model,
    prompts: Iterable[Prompt],
    *,
    layers: str | Sequence[int] = "all",
    max_tokens: int = 1024,
    share_prefixes: bool = True,
    what: str = "Reading residual streams",
) -> Residuals:
    """Read the residual stream at the last token of each prompt.

    Rows come in the order of `prompts`, fp32, in host memory. `layers` is "all", "3,15", "0:16" or a list.
    `max_tokens` bounds the padded tokens of a batch. `share_prefixes` computes what prompts have in common (a system
    prompt, say) once; in fp32 that changes nothing beyond rounding.
    Raises DefectionError for a prompt longer than the model's context, and for a non-finite residual, naming prompt
    and layer.
    """
    rows = tuple(prompts)
    ids = tokenize_within_context(model, rows)
    chosen = parse_layers(layers, model.n_layers)
    values = torch.empty(len(rows), len(chosen), model.d_model, dtype=torch.float32)
    with progress(what, total=len(rows), unit="prompts") as advance:
        for batch in plan_batches(ids, max_tokens=max_tokens, share_prefixes=share_prefixes):
            values[list(batch.rows)] = last_token_residuals(model, ids, batch, chosen)
            advance(len(batch.rows))
    refuse_non_finite(values, rows, chosen)
    return Residuals(values, chosen, rows, tuple(len(row) for row in ids), model.identity)


def tokenize_within_context(model: Model, prompts: Sequence[Prompt], *, reply_tokens: int = 0) -> list[list[int]]:
    """Token ids, or a DefectionError that names the first prompt that does not fit the model's context.

    Room is kept for a reply of `reply_tokens`, whose last token never goes through the model.
    """
    ids = tokenize(model.tokenizer, prompts)
    room = model.context_length - max(0, reply_tokens - 1)
    for prompt, row in zip(prompts, ids, strict=True):
        if len(row) > room:
            reply = f" and its reply {reply_tokens}" if reply_tokens else ""
            raise DefectionError(
                f"prompt {prompt.id!r} is {len(row)} tokens long{reply}, but {model.identity.name} takes at most "
                f"{model.context_length}; shorten it or leave it out"
            )
    return ids


def parse_layers(layers: str | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """ "all", "3,15", "0:16" (end excluded), or a sequence, to ascending layer numbers without repeats."""
    if isinstance(layers, str):
        chosen: list[int] = []
        for part in layers.split(","):
            chosen += _parse_part(part.strip(), n_layers)
    else:
        chosen = [int(layer) for layer in layers]
    outside = [layer for layer in chosen if not 0 <= layer < n_layers]
    if outside or not chosen:
        raise DefectionError(f"no layer {outside or layers!r}: this model has layers 0 to {n_layers - 1}")
    return tuple(sorted(set(chosen)))


def _parse_part(part: str, n_layers: int) -> list[int]:
    if part == "all":
        return list(range(n_layers))
    try:
        if ":" in part:
            start, end = part.split(":")
            return list(range(int(start or 0), int(end or n_layers)))
        return [int(part)]
    except ValueError as error:
        raise DefectionError(f"cannot read layers {part!r}: write all, 3,15 or 0:16") from error


@torch.inference_mode()
def last_token_residuals(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, layers: Sequence[int]
) -> Float[Tensor, "row layer d_model"]:
    """The residuals of one batch at each row's last token, fp32, on the host; no block after the last layer runs."""
    tokens, mask, cache = batch_inputs(model, ids, batch)
    last = mask[:, batch.prefix_length :].sum(dim=1) - 1  # rows are right-padded: the last real token (PITFALLS 1)
    with gathering(model.blocks, layers, last, stop=True) as picked:
        forward_body(model.network, tokens, mask, cache)
    return stacked(picked, layers)


def stacked(picked: dict[int, Tensor], layers: Sequence[int]) -> Float[Tensor, "row layer d_model"]:
    """What `gathering` picked, as one fp32 tensor on the host: one copy a batch."""
    return torch.stack([picked[layer] for layer in layers], dim=1).float().cpu()


def batch_inputs(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row prefix+token"], DynamicCache | None]:
    """Right-padded token ids after the shared prefix, the attention mask over both, and the prefix's key-value cache.

    Right padding leaves position ids natural for every family, GPT-2's learned ones included (PITFALLS 2).
    """
    prefix = batch.prefix_length
    tails = [list(ids[row][prefix:]) for row in batch.rows]
    width = max(len(tail) for tail in tails)
    pad = model.tokenizer.pad_token_id
    tokens = torch.tensor([tail + [pad] * (width - len(tail)) for tail in tails], device=model.device)
    lengths = torch.tensor([prefix + len(tail) for tail in tails], device=model.device)
    mask = (torch.arange(prefix + width, device=model.device) < lengths[:, None]).long()
    cache = prefix_cache(model.network, ids[batch.rows[0]][:prefix], len(tails)) if prefix else None
    return tokens, mask, cache


def prefix_cache(network: PreTrainedModel, prefix: Sequence[int], rows: int) -> DynamicCache:
    """Keys and values of a prefix, computed once and repeated for each row."""
    device = next(network.parameters()).device
    cache = DynamicCache(config=network.config)
    tokens = torch.tensor([list(prefix)], device=device)
    network.get_decoder()(input_ids=tokens, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache


class _LastLayerReached(Exception):
    """Every wanted layer has been read; the rest of the forward pass is not needed."""


def forward_body(network: PreTrainedModel, tokens: Tensor, mask: Tensor, cache: DynamicCache | None) -> Any:
    """The decoder without its vocabulary matrix; None when a hook stopped it early."""
    try:
        return network.get_decoder()(
            input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        )
    except _LastLayerReached:
        return None


@contextmanager
def gathering(
    blocks: Sequence[nn.Module], layers: Sequence[int], last: Int[Tensor, "row"], *, stop: bool
) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass leaves each layer's residuals at position `last` of each row in the dictionary given.

    With `stop` the pass ends after the last wanted layer.
    """
    rows = torch.arange(len(last), device=last.device)
    picked: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: nn.Module, args: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            picked[layer] = stream[rows, last]
            if stop and layer == layers[-1]:
                raise _LastLayerReached

        return read

    handles = [blocks[layer].register_forward_hook(reader(layer)) for layer in layers]
    try:
        yield picked
    finally:
        for handle in handles:
            handle.remove()


def refuse_non_finite(values: Tensor, prompts: Sequence[Prompt], layers: Sequence[int]) -> None:
    """DefectionError naming the first prompt and layer whose vector holds an infinity or a NaN (PITFALLS 13)."""
    finite = values.isfinite().all(dim=-1)
    if not finite.all():
        row, layer = (int(i) for i in (~finite).nonzero()[0])
        raise DefectionError(
            f"the residual of prompt {prompts[row].id!r} at layer {layers[layer]} is not finite; "
            "the model overflows in this dtype, so use --dtype fp32"
        )


def _spell(layers: Sequence[int]) -> str:
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if contiguous else f"layers {', '.join(map(str, layers))}"
