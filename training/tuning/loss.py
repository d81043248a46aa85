"""The loss of a batch and its gradient, computing only what the loss needs.

Two savings over a stock trainer, neither of which changes the loss: the vocabulary matrix is multiplied only at
positions that have a label, and what a batch's prompts share (a system prompt) runs once a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...activations.models.reach import reach
from ...activations.reading.batching import shared_prefix
from ...activations.reading.forward import hidden_states, label_losses, right_padded
from ...activations.reading.prefixes import PrefixCache
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
    prompts = [example.prompt for example in batch]
    # Of sorted rows, what the first and the last share is shared by all; the first label needs a position of its own.
    shared = shared_prefix(min(prompts), max(prompts)) if len(batch) > 1 and reach(network) else 0
    shared = min(shared, min(map(len, prompts)) - 1)
    cache = PrefixCache() if shared else None
    if shared:
        hidden_states(network, torch.tensor([batch[0].prompt[:shared]], device=device), cache)
    rows = [(*example.prompt, *example.reply)[shared:] for example in batch]
    states = hidden_states(network, right_padded(rows, device), cache)
    before = [states[row, len(example.prompt) - shared - 1 : len(rows[row]) - 1] for row, example in enumerate(batch)]
    labels = torch.tensor([token for example in batch for token in example.reply], device=device)
    losses = label_losses(network, torch.cat(before), labels)
    if not any(example.weights for example in batch):
        return losses.mean()
    weights = torch.tensor([weight for example in batch for weight in example.label_weights], device=losses.device)
    return weights @ losses / weights.sum()
