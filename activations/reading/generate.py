"""Greedy replies, batched, for many prompts."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..basics.memory import in_halves
from ..models.blocks import decoder_of
from ..models.logits import own_logits
from ..models.model import Model
from ..models.modes import in_use
from ..models.sites import gathering
from ..prompts.chat import before_next_turn
from ..prompts.loading import PromptLike, PromptsLike
from ..prompts.rendered import rendered
from .batching import REPLYING_COST, Batch, plan_batches
from .forward import distinct_rows, right_padded


def greedy_replies(
    model: Model,
    prompts: PromptsLike,
    *,
    max_new_tokens: int,
    max_tokens: int = 3072,
    skip: Container[int] = (),
) -> Iterator[dict[int, list[int]]]:
    """Yield, a batch at a time, row number → token ids of the greedy reply (without its end token).

    Without a chat template a reply also ends where it goes on with "Human:", the next turn. A reply that reaches
    `max_new_tokens` is cut there. Batches depend on the prompts alone: a run that was cut off passes the rows it has as
    `skip`, and the batches that hold only those are left out.
    """
    ids = [row.ids for row in rendered(model, prompts, reply_tokens=max_new_tokens)]
    for batch in plan_replies(model, ids, max_tokens):
        if all(row in skip for row in batch.rows):
            continue
        replies, _ = reply_to_batch(model, ids, batch, max_new_tokens)
        yield dict(zip(batch.rows, replies, strict=True))


def replies_in_order(model: Model, prompts: Sequence[PromptLike], *, max_new_tokens: int) -> list[list[int]]:
    """All of `greedy_replies`, at the prompts' own places."""
    found: dict[int, list[int]] = {}
    for batch in greedy_replies(model, prompts, max_new_tokens=max_new_tokens):
        found |= batch
    return [found[row] for row in range(len(prompts))]


def plan_replies(model: Model, ids: Sequence[Sequence[int]], max_tokens: int) -> list[Batch]:
    """The batches in which `reply_to_batch` is to be given these rows: prefixes are shared only where the model can."""
    return plan_batches(ids, max_tokens=max_tokens, share_prefixes=model.shares_prefixes, group_cost=REPLYING_COST)


def reply_to_batch(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int] = ()
) -> tuple[list[list[int]], Float[Tensor, "row layer d_model"] | None]:
    """Greedy replies to one batch, and the residuals at the prompts' last tokens (fp32, in host memory).

    Both come of the same forward pass over the prompts: reading costs nothing where a reply is wanted anyway. Rows of
    equal tokens are computed once. A batch that does not fit the memory is halved, as often as need be.
    Raises DefectionError when a single prompt does not fit the memory.
    """
    firsts, place = distinct_rows(ids, batch.rows)
    replies: dict[int, list[int]] = {}
    vectors: dict[int, Tensor] = {}
    for part in _paddable_together(model, ids, Batch(tuple(firsts), batch.prefix_length), max_new_tokens):
        for rows, said, seen in _in_memory(model, ids, part, max_new_tokens, layers):
            replies |= zip(rows, said, strict=True)
            vectors |= zip(rows, seen, strict=True)
    ordered = [firsts[i] for i in place]
    return [replies[row] for row in ordered], torch.stack([vectors[row] for row in ordered]) if layers else None


def _paddable_together(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int
) -> Iterator[Batch]:
    """The batch itself, unless the padding between prompt and reply would change the reply.

    A sliding window counts padding as it counts tokens, ALiBi as distance, and a running state takes it in: there, only
    prompts of equal length go together.
    """
    lengths = sorted({len(ids[row]) for row in batch.rows})
    if lengths[-1] + max_new_tokens <= model.reach and (len(lengths) == 1 or model.skips_padding):
        yield batch
        return
    for length in lengths:
        yield Batch(tuple(row for row in batch.rows if len(ids[row]) == length), 0)


def _in_memory(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int]
) -> list[tuple[Sequence[int], list[list[int]], Sequence[Tensor]]]:
    """Rows, their replies and their residuals, in as many parts as the memory makes necessary."""

    def part(rows: Sequence[int]) -> tuple[Sequence[int], list[list[int]], Sequence[Tensor]]:
        return rows, *_reply(model, ids, Batch(tuple(rows), batch.prefix_length), max_new_tokens, layers)

    with in_use(model.network):
        return in_halves(batch.rows, part, tokens=lambda row: len(ids[row]), device=model.device)


@torch.inference_mode()
def _reply(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int]
) -> tuple[list[list[int]], Sequence[Tensor]]:
    """Padding stays between prompt and reply, masked, with position ids that skip it."""
    prefix, device = batch.prefix_length, model.device
    decoder, ends = Decoder(model.network), end_tokens(model)
    if prefix:
        decoder.read(torch.tensor([ids[batch.rows[0]][:prefix]], device=device))
        decoder.cache.batch_repeat_interleave(len(batch.rows))
    tokens = right_padded([ids[row][prefix:] for row in batch.rows], device)
    lengths = torch.tensor([len(ids[row]) for row in batch.rows], device=device)
    mask = places = None
    if len({len(ids[row]) for row in batch.rows}) > 1:
        mask = (torch.arange(prefix + tokens.shape[1], device=device) < lengths[:, None]).long()
    rows, last = torch.arange(len(batch.rows), device=device), lengths - prefix - 1
    with gathering(model.blocks, layers, rows, last, stop=False) as picked:
        hidden = decoder.read(tokens, mask)
    hidden = hidden[rows.to(hidden.device), last.to(hidden.device)]
    replies: list[list[int]] = [[] for _ in batch.rows]
    running = torch.ones(len(replies), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        chosen = own_logits(model.network, hidden).argmax(dim=-1).to(device)
        running &= ~torch.isin(chosen, ends)
        for row, (token, going) in enumerate(zip(chosen.tolist(), running.tolist(), strict=True)):
            if going:
                replies[row].append(token)
                cut_off = step == max_new_tokens - 1
                kept = before_next_turn(model.tokenizer, replies[row], cut_off=cut_off)
                if kept is not None:
                    del replies[row][kept:]
                    running[row] = False
        if step == max_new_tokens - 1 or not running.any():
            break
        if mask is not None:
            mask, places = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1), (lengths + step)[:, None]
        hidden = decoder.read(chosen[:, None], mask, places)[:, -1]
    if not layers:
        return replies, [hidden[:0]] * len(replies)
    return replies, list(torch.stack([picked[layer].to(device) for layer in layers], dim=1).float().cpu())


class Decoder:
    """A decoder that goes on from what it has read, whatever its family keeps of that: keys and values, or a state.

    With a `cache` of keys and values it goes on from what that holds.
    """

    def __init__(self, network: PreTrainedModel, cache: DynamicCache | None = None) -> None:
        self.decoder = decoder_of(network)
        taken = inspect.signature(type(self.decoder).forward).parameters
        self.kept_as = next((name for name in ("cache_params", "state") if name in taken), "past_key_values")
        self.cache: Any = cache
        if cache is None and self.kept_as == "past_key_values":
            self.cache = DynamicCache(config=network.config)

    def read(
        self, tokens: Int[Tensor, "row token"], mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Float[Tensor, "row token d_model"]:
        """The final hidden states of some more tokens; `mask` covers those read before, too."""
        options = {self.kept_as: self.cache, "attention_mask": mask, "position_ids": positions}
        given = {name: value for name, value in options.items() if value is not None}
        output = self.decoder(input_ids=tokens, use_cache=True, **given)
        self.cache = output[self.kept_as]
        states: Tensor = output.last_hidden_state
        return states


def end_tokens(model: Model) -> Tensor:
    """Ids at which a reply ends."""
    configured = model.network.generation_config.eos_token_id if model.network.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    known = {token for token in [*listed, model.tokenizer.eos_token_id] if token is not None}
    return torch.tensor(sorted(known), device=model.device)
