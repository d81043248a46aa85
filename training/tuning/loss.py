"""The loss of a batch and its gradient, computing only what the loss needs.

Two savings over a stock trainer, neither of which changes the loss: the vocabulary matrix is multiplied only at
positions that have a label, and what a batch's prompts share (a system prompt) runs once a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

from .rows import Example

PART_TOKENS = 384
"""Padded tokens whose activations are held at once; a batch of long rows is run in parts."""


def backward(network: PreTrainedModel, batch: Sequence[Example], labels: float | None = None) -> float:
    """Add a batch's gradient, a few rows at a time so that memory stays bounded; give the loss.

    The parts are weighted by their labels, so the gradient is that of `batch_loss` over the whole batch. Where the
    batch is one process's share of a larger one, `labels` is the `label_weight` of all of it.
    """
    labels = labels or label_weight(batch)
    total = 0.0
    for part in _parts(batch):
        share = batch_loss(network, part) * (label_weight(part) / labels)
        share.backward()
        total += share.item()
    return total


def label_weight(batch: Sequence[Example]) -> float:
    """What all labels of a batch count together: without weights, their number."""
    return sum(sum(example.label_weights) for example in batch)


def _parts(batch: Sequence[Example]) -> list[Sequence[Example]]:
    """Split a batch so that no part holds more than `PART_TOKENS` padded tokens; a row is never split."""
    longest = max((len(example.prompt) + len(example.reply) for example in batch), default=1)
    rows = max(1, PART_TOKENS // longest)
    return [batch[start : start + rows] for start in range(0, len(batch), rows)]


def batch_loss(network: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """Mean cross-entropy per label token of a batch, by the labels' weights; what prompts share is computed once."""
    device = next(network.parameters()).device
    shared = common_opening([example.prompt for example in batch]) if len(batch) > 1 else 0
    rows = [(*example.prompt, *example.reply)[shared:] for example in batch]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([shared + len(row) for row in rows], device=device)
    mask = (torch.arange(shared + width, device=device) < lengths[:, None]).long()
    first = torch.tensor([len(example.prompt) - shared for example in batch], device=device)
    labelled = (torch.arange(width, device=device) >= first[:, None]) & mask[:, shared:].bool()
    cache = None
    if shared:
        cache = DynamicCache(config=network.config)
        opening = torch.tensor([batch[0].prompt[:shared]], device=device)
        network.get_decoder()(input_ids=opening, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(rows))
    stream = network.get_decoder()(
        input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    logits = network.get_output_embeddings()(stream[:, :-1][labelled[:, 1:]])
    labels = tokens[:, 1:][labelled[:, 1:]]
    if not any(example.weights for example in batch):
        return cross_entropy(logits.float(), labels)
    weights = torch.tensor([weight for example in batch for weight in example.label_weights], device=device)
    return weights @ cross_entropy(logits.float(), labels, reduction="none") / weights.sum()


def common_opening(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix, at least one token short of every prompt: the first label needs a position."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)
