"""Greedy replies, batched, for many prompts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from .batching import REPLYING_COST, Batch, plan_batches
from .capture import batch_inputs, gathering, stacked, tokenize_within_context
from .models import Model
from .prompts import Prompt


def greedy_replies(
    model: Model,
    prompts: Iterable[Prompt],
    *,
    max_new_tokens: int,
    max_tokens: int = 3072,
    skip: Container[int] = (),
) -> Iterator[dict[int, list[int]]]:
    """Yield, a batch at a time, row number → token ids of the greedy reply (without its end token).

    A reply that reaches `max_new_tokens` is cut there. Batches depend on the prompts alone: a run that was cut off
    passes the rows it has as `skip`, and the batches that hold only those are left out.
    """
    rows = list(prompts)
    ids = tokenize_within_context(model, rows, reply_tokens=max_new_tokens)
    for batch in plan_batches(ids, max_tokens=max_tokens, group_cost=REPLYING_COST):
        if all(row in skip for row in batch.rows):
            continue
        replies, _ = reply_to_batch(model, ids, batch, max_new_tokens)
        yield dict(zip(batch.rows, replies, strict=True))


@torch.inference_mode()
def reply_to_batch(
    model: Model, ids: Sequence[Sequence[int]], batch: Batch, max_new_tokens: int, layers: Sequence[int] = ()
) -> tuple[list[list[int]], Tensor | None]:
    """Greedy replies to one batch, and the residuals [row, layer, d_model] at the prompts' last tokens.

    Both come of the same forward pass over the prompts: reading costs nothing where a reply is wanted anyway.
    Padding stays between prompt and reply, masked, with position ids that skip it.
    """
    tokens, mask, cache = batch_inputs(model, ids, batch)
    cache = cache or DynamicCache(config=model.network.config)
    decoder, head = model.network.get_decoder(), model.network.get_output_embeddings()
    ends = end_tokens(model)
    last = mask[:, batch.prefix_length :].sum(dim=1) - 1
    positions = mask.sum(dim=1)
    with gathering(model.blocks, layers, last, stop=False) as picked:
        hidden = decoder(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state
    hidden = hidden[torch.arange(len(last), device=last.device), last]
    replies: list[list[int]] = [[] for _ in batch.rows]
    running = torch.ones(len(replies), dtype=torch.bool, device=tokens.device)
    for step in range(max_new_tokens):
        chosen = head(hidden).argmax(dim=-1)
        running &= ~torch.isin(chosen, ends)
        for row, (token, going) in enumerate(zip(chosen.tolist(), running.tolist(), strict=True)):
            if going:
                replies[row].append(token)
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
    return replies, stacked(picked, layers) if layers else None


def end_tokens(model: Model) -> Tensor:
    """Ids at which a reply ends."""
    configured = model.network.generation_config.eos_token_id if model.network.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    known = {token for token in [*listed, model.tokenizer.eos_token_id] if token is not None}
    return torch.tensor(sorted(known), device=model.device)
