"""Continuations behind rows that are read once cost what they cost in rows that hold them."""

from __future__ import annotations

import pytest
import torch
from defection.activations.models.wrap import wrap
from defection.activations.reading import continuations
from defection.activations.reading.continuations import continuation_losses
from defection.activations.reading.forward import token_losses

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import FAMILIES, random_network

ROWS = [[3, 4, 5, 6, 7, 8], [3, 4, 5, 9], [3, 4, 5, 10, 11, 12], [3, 4, 5, 6], [3, 4, 5, 6]]
SAID = [[20, 21, 22], [20, 23], [24]]


def _whole(model, ids, said):
    rows = [[*row, *each] for row in ids for each in said]
    places = [range(len(row), len(row) + len(each)) for row in ids for each in said]
    return torch.tensor([float(loss.mean()) for loss in token_losses(model, rows, places)]).view(len(ids), len(said))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_continuation_costs_what_it_costs_in_a_row_that_holds_it(family) -> None:
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    for ids in (ROWS, [[5, 6, 7], [8, 9]], [[7]]):  # with a common beginning, without one, and a row alone
        assert torch.allclose(continuation_losses(model, ids, SAID), _whole(model, ids, SAID), atol=2e-4)


def test_small_batches_give_the_same_and_nothing_gives_nothing(llama, monkeypatch) -> None:
    whole = continuation_losses(llama, ROWS, SAID)
    monkeypatch.setattr(continuations, "ROWS", 1)
    assert torch.allclose(continuation_losses(llama, ROWS, SAID), whole, atol=1e-5)
    assert continuation_losses(llama, [], SAID).shape == (0, 3)
    assert continuation_losses(llama, ROWS, []).shape == (5, 0)
