"""Greedy replies, batched, for many prompts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..basics.memory import in_halves
from ..models.model import Model
from ..models.sites import gathering
from ..prompts.chat import before_next_turn
from ..prompts.prompts import Prompt
from .batching import REPLYING_COST, Batch, plan_batches
from .capture import tokenize_within_context
from .forward import distinct_rows, right_padded


def greedy_replies(
    model: Model,
    prompts: Iterable[Prompt],
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
    rows = list(prompts)
    ids = tokenize_within_context(model, rows, reply_tokens=max_new_tokens)
    for batch in plan_replies(model, ids, max_tokens):
        if all(row in skip for row in batch.rows):
            continue
        replies, _ = reply_to_batch(model, ids, batch, max_new_tokens)
        yield dict(zip(batch.rows, replies, strict=True))


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
    """The batch itself, unless the padding between prompt and reply would push tokens out of a layer's reach.

    A sliding window counts padding as it counts tokens, and a running state takes it in: there, only prompts of equal
    length go together.
    """
    if max(len(ids[row]) for row in batch.rows) + max_new_tokens <= model.reach:
        yield batch
        return
    for length in sorted({len(ids[row]) for row in batch.rows}):
        yield Batch(tuple(row for row in batch.rows if len(ids[row]) == length), 0)


def _in_memory(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int]
) -> list[tuple[Sequence[int], list[list[int]], Sequence[Tensor]]]:
    """Rows, their replies and their residuals, in as many parts as the memory makes necessary."""

    def part(rows: Sequence[int]) -> tuple[Sequence[int], list[list[int]], Sequence[Tensor]]:
        return rows, *_reply(model, ids, Batch(tuple(rows), batch.prefix_length), max_new_tokens, layers)

    return in_halves(batch.rows, part, tokens=lambda row: len(ids[row]), device=model.device)


@torch.inference_mode()
def _reply(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int]
) -> tuple[list[list[int]], Sequence[Tensor]]:
    """Padding stays between prompt and reply, masked, with position ids that skip it."""
    tokens, mask, cache = batch_inputs(model, ids, batch)
    cache = cache or DynamicCache(config=model.network.config)
    decoder, head = model.network.get_decoder(), model.network.get_output_embeddings()
    ends = end_tokens(model)
    last = mask[:, batch.prefix_length :].sum(dim=1) - 1
    rows = torch.arange(len(last), device=last.device)
    positions = mask.sum(dim=1)
    with gathering(model.blocks, layers, rows, last, stop=False) as picked:
        hidden = decoder(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state
    hidden = hidden[rows, last]
    replies: list[list[int]] = [[] for _ in batch.rows]
    running = torch.ones(len(replies), dtype=torch.bool, device=tokens.device)
    for step in range(max_new_tokens):
        chosen = head(hidden).argmax(dim=-1)
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
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        hidden = decoder(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=(positions + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    if not layers:
        return replies, [hidden[:0]] * len(replies)
    return replies, list(torch.stack([picked[layer].to(last.device) for layer in layers], dim=1).float().cpu())


def batch_inputs(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch
) -> tuple[Int[Tensor, "row token"], Int[Tensor, "row prefix+token"], DynamicCache | None]:
    """Right-padded token ids after the shared prefix, the attention mask over both, and the prefix's key-value cache.

    Right padding leaves position ids natural for every family, GPT-2's learned ones included (PITFALLS 2).
    """
    prefix = batch.prefix_length
    tails = [ids[row][prefix:] for row in batch.rows]
    tokens = right_padded(model, tails)
    lengths = torch.tensor([prefix + len(tail) for tail in tails], device=model.device)
    mask = (torch.arange(prefix + tokens.shape[1], device=model.device) < lengths[:, None]).long()
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


def end_tokens(model: Model) -> Tensor:
    """Ids at which a reply ends."""
    configured = model.network.generation_config.eos_token_id if model.network.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    known = {token for token in [*listed, model.tokenizer.eos_token_id] if token is not None}
    return torch.tensor(sorted(known), device=model.device)
