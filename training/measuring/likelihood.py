"""Log-probabilities of given replies to given prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from ...activations.models.model import Model
from ...activations.prompts.chat import reply_ids, tokenize
from ...activations.prompts.prompts import Prompt
from ..tuning.loss import common_opening

Row = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a reply."""


def reply_logprobs(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 32
) -> list[float]:
    """Natural-log probability of each reply, whole, after its prompt."""
    said = [reply_ids(model.tokenizer, text) for text in replies]
    return token_logprobs(model, prompts, said, batch_size)


@torch.inference_mode()
def token_logprobs(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]], batch_size: int = 32
) -> list[float]:
    """Natural-log probability of each reply, given as token ids, after its prompt; of an empty one 0.

    Prompts that are the same, and what all prompts of a batch begin with, are computed once where keys and values can
    stand for them. Padding lies behind an attention mask, so that a row's value does not depend on its batch.
    """
    rows = [(tuple(ids), tuple(said)) for ids, said in zip(tokenize(model.tokenizer, prompts), replies, strict=True)]
    found = [0.0] * len(rows)
    order = sorted((row for row in range(len(rows)) if rows[row][1]), key=lambda row: (len(rows[row][0]), *rows[row]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [rows[row] for row in chosen]
        fits = max(len(prompt) + len(reply) for prompt, reply in batch) <= model.reach
        values = _prompts_once(model, batch) if fits else _whole(model, batch)
        for row, value in zip(chosen, values, strict=True):
            found[row] = value
    return found


def _whole(model: Model, batch: Sequence[Row]) -> list[float]:
    """Each prompt and reply in one piece."""
    tokens, mask = _padded([(*prompt, *reply) for prompt, reply in batch], model.device)
    stream = model.network.get_decoder()(input_ids=tokens, attention_mask=mask).last_hidden_state
    return [
        float(_logprobs(model, stream[row, len(prompt) - 1 : len(prompt) + len(reply) - 1], reply).sum())
        for row, (prompt, reply) in enumerate(batch)
    ]


def _prompts_once(model: Model, batch: Sequence[Row]) -> list[float]:
    """The shared opening once, then each distinct prompt once, then the replies behind their prompts."""
    decoder, device = model.network.get_decoder(), model.device
    firsts = list(dict.fromkeys(prompt for prompt, _ in batch))
    place = [firsts.index(prompt) for prompt, _ in batch]
    cache = DynamicCache(config=model.network.config)
    shared = common_opening(firsts)
    seen = torch.ones(len(firsts), shared, dtype=torch.long, device=device)
    if shared:
        opening = torch.tensor([firsts[0][:shared]], device=device)
        decoder(input_ids=opening, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(firsts))
    tokens, mask = _padded([prompt[shared:] for prompt in firsts], device)
    seen = torch.cat([seen, mask], dim=1)
    stream = decoder(input_ids=tokens, attention_mask=seen, past_key_values=cache, use_cache=True).last_hidden_state
    last = stream[torch.arange(len(firsts), device=device), mask.sum(dim=1) - 1]
    values = _logprobs(model, last[place], [reply[0] for _, reply in batch]).tolist()
    longer = [row for row, (_, reply) in enumerate(batch) if len(reply) > 1]
    if not longer:
        return list(values)
    kept = torch.tensor([place[row] for row in longer], device=device)
    cache.batch_select_indices(kept)
    tokens, mask = _padded([batch[row][1][:-1] for row in longer], device)
    places = seen[kept].sum(dim=1, keepdim=True) + torch.arange(tokens.shape[1], device=device)
    stream = decoder(
        input_ids=tokens,
        attention_mask=torch.cat([seen[kept], mask], dim=1),
        position_ids=places,  # a short prompt's padding stands between it and its reply
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    for line, row in enumerate(longer):
        rest = batch[row][1][1:]
        values[row] += float(_logprobs(model, stream[line, : len(rest)], rest).sum())
    return list(values)


def _logprobs(model: Model, stream: Tensor, tokens: Sequence[int]) -> Tensor:
    """Of each token after the hidden state in the same row: [token]."""
    logits: Tensor = model.network.get_output_embeddings()(stream).float()
    chosen = torch.tensor(tokens, dtype=torch.long, device=logits.device)[:, None]
    return logits.log_softmax(dim=-1).gather(1, chosen)[:, 0]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, and their mask."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([[len(row)] for row in rows], device=device)
    return tokens, (torch.arange(width, device=device) < lengths).long()
