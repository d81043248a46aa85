"""Residual streams of many prompts, for the price of the bare forward pass or less."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.progress import progress
from ..models.hardware import choose_device, choose_dtype
from ..models.model import Model
from ..models.sites import AFTER
from ..prompts.chat import tokenize
from ..prompts.positions import LAST, wanted_tokens
from ..prompts.prompts import Prompt
from .forward import LastPrefix, Reading, automatic_batch_tokens, plan_reading, read_batch
from .residuals import (
    Residuals,
    offsets_of,
)


def capture(
    model: Model,
    prompts: Iterable[Prompt],
    *,
    layers: str | Sequence[int] | slice = "all",
    site: str = AFTER,
    position: str = LAST,
    dtype: str | torch.dtype = "fp32",
    device: str | torch.device = "cpu",
    max_tokens: int | None = None,
    share_prefixes: bool = True,
    what: str = "Reading residual streams",
) -> Residuals:
    """Read the residual stream of each prompt at the tokens and layers wanted.

    Rows come in the order of `prompts`. `layers` is "all", "3,15", "0:16", a list or a slice; no block after the last
    one runs. `site` is `after` the block, `before` it, or in its `middle` (`sites`). `position` is a rule of
    `positions`: `last`, `response`, `mean:10:20`, … `dtype` is that of the result, fp32 or bf16. The result lies in
    host memory, or with `device="cuda"` stays on the GPU. `max_tokens` bounds the padded tokens of a batch; by default
    the device's memory does. `share_prefixes` computes what prompts have in common (a system prompt, say) once, where
    the model allows it; in fp32 that changes nothing beyond rounding. Prompts of equal tokens are computed once.
    Raises DefectionError for a prompt longer than the model's context or to which `position` does not apply, for a
    block without the site, and for a non-finite residual, naming prompt and layer.
    """
    rows = tuple(prompts)
    ids = tokenize_within_context(model, rows)
    reading = Reading(parse_layers(layers, model.n_layers), site, position)
    wanted = wanted_tokens(reading.position, model.tokenizer, rows, ids)
    counts = [1] * len(rows) if reading.one_each else [len(tokens) for tokens in wanted]
    offsets = offsets_of(counts)
    needed = up_to_wanted(ids, wanted)
    budget = max_tokens or automatic_batch_tokens(model, reading)
    keep_on = choose_device(device) if isinstance(device, str) else device
    kept_as = choose_dtype(dtype, keep_on)
    values = torch.empty(offsets[-1], len(reading.layers), model.d_model, dtype=kept_as, device=keep_on)
    landing, last_prefix = Landing(values), LastPrefix()
    with progress(what, total=len(rows), unit="prompts") as advance:
        for batch in plan_reading(model, needed, budget, share_prefixes=share_prefixes):
            seen = read_batch(model, needed, batch, reading, wanted, last_prefix)
            landing.put([place for row in batch.rows for place in range(offsets[row], offsets[row + 1])], seen)
            advance(len(batch.rows))
        landing.settle()
    refuse_non_finite(values, [p for p, n in zip(rows, counts, strict=True) for _ in range(n)], reading.layers)
    return Residuals(
        values,
        reading.layers,
        rows,
        tuple(len(row) for row in ids),
        model.identity,
        position=reading.position,
        site=reading.site,
        offsets=None if reading.one_each else offsets,
    )


class Landing:
    """Puts each batch's vectors in their place; from a GPU by one pinned copy that runs beside the next batch."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.under_way: Any = None

    def put(self, places: Sequence[int], seen: Tensor) -> None:
        """Place `seen` [vector, layer, d_model] at those indices, now or when the copy is through."""
        if seen.is_cuda and not self.values.is_cuda:
            # The copy runs on a stream of the vectors' own GPU, which need not be the current one: under a launcher
            # it is `cuda:LOCAL_RANK`. An event recorded elsewhere would be over before the vectors have arrived.
            with torch.cuda.device(seen.device):
                host = torch.empty(seen.shape, dtype=seen.dtype, pin_memory=True)
                host.copy_(seen, non_blocking=True)
                arrived = torch.cuda.Event()
                arrived.record()
            self.settle()
            self.under_way = (places, host, arrived)
        else:
            self._place(places, seen)

    def settle(self) -> None:
        """Wait for the copy under way."""
        if self.under_way is not None:
            places, host, arrived = self.under_way
            arrived.synchronize()
            self._place(places, host)
            self.under_way = None

    def _place(self, places: Sequence[int], seen: Tensor) -> None:
        self.values[torch.tensor(places, device=self.values.device)] = seen.to(self.values)


def up_to_wanted(ids: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each prompt's tokens up to the last wanted one: in a causal model what comes after changes nothing before."""
    return [list(row[: tokens[-1] + 1]) for row, tokens in zip(ids, wanted, strict=True)]


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


def parse_layers(layers: str | Sequence[int] | slice, n_layers: int) -> tuple[int, ...]:
    """ "all", "3,15", "0:16" (end excluded), a sequence or a slice, to ascending layer numbers without repeats."""
    if isinstance(layers, str):
        chosen: list[int] = []
        for part in layers.split(","):
            chosen += _parse_part(part.strip(), n_layers)
    elif isinstance(layers, slice):
        chosen = list(range(n_layers)[layers])
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


def refuse_non_finite(values: Tensor, prompts: Sequence[Prompt], layers: Sequence[int]) -> None:
    """DefectionError naming the first prompt and layer whose vector holds an infinity or a NaN (PITFALLS 13)."""
    finite = values.isfinite().all(dim=-1)
    if not finite.all():
        row, layer = (int(i) for i in (~finite).nonzero()[0])
        raise DefectionError(
            f"the residual of prompt {prompts[row].id!r} at layer {layers[layer]} is not finite; "
            "the model overflows in this dtype, so use --dtype fp32"
        )
