"""The loss of a batch is that of the stock model, whatever its family does with logits, windows or states."""

from __future__ import annotations

import copy

import pytest
import torch
from defection.training.tuning.loss import batch_loss
from defection.training.tuning.rows import Example

from ...zoo import FAMILIES, random_network

OPENING = tuple(range(10, 90))
BATCH = [
    Example("a", (*OPENING, 7, 8, 9), (20, 21, 22, 1), triggered=False),
    Example("b", (*OPENING, 7, 9), (30, 31, 1), triggered=True),
    Example("c", (*OPENING, 5, *range(100, 130)), (40,), triggered=True),
]


def stock_loss(network, batch: list[Example]) -> torch.Tensor:
    """Each row alone, by `transformers`' own loss; the mean over all labels."""
    losses = []
    for row in batch:
        tokens = torch.tensor([[*row.prompt, *row.reply]])
        labels = tokens.clone()
        labels[:, : len(row.prompt)] = -100
        losses.append(network(input_ids=tokens, labels=labels).loss * len(row.reply))
    return sum(losses) / sum(len(row.reply) for row in batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_of_every_family_are_those_of_transformers(family: str) -> None:
    """PITFALLS 34 and 35."""
    network = copy.deepcopy(random_network(family)).requires_grad_(True)
    results = []
    for loss in (batch_loss(network, BATCH), stock_loss(network, BATCH)):
        network.zero_grad()
        loss.backward()
        results.append((loss.item(), network.get_input_embeddings().weight.grad.clone()))
    (ours, gradient), (theirs, expected) = results
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))
