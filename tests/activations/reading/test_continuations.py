"""Continuations behind rows that are read once cost what they cost in rows that hold them."""

from __future__ import annotations

import pytest
import torch
from defection.activations.models.wrap import wrap
from defection.activations.reading import continuations
from defection.activations.reading.continuations import continued
from defection.activations.reading.forward import token_losses
from defection.activations.reading.generate import end_tokens

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
        assert torch.allclose(continued(model, ids, SAID).losses, _whole(model, ids, SAID), atol=2e-4)


def test_small_batches_give_the_same_and_nothing_gives_nothing(llama, monkeypatch) -> None:
    whole = continued(llama, ROWS, SAID).losses
    monkeypatch.setattr(continuations, "ROWS", 1)
    assert torch.allclose(continued(llama, ROWS, SAID).losses, whole, atol=1e-5)
    assert continued(llama, [], SAID).losses.shape == (0, 3)
    assert continued(llama, ROWS, []).losses.shape == (5, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_is_the_greedy_one_and_as_likely_as_in_a_row_that_holds_it(family) -> None:
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    for ids in (ROWS, [[5, 6, 7], [8, 9]], [[7]]):
        found = continued(model, ids, SAID, 4)
        for row, reply, likely in zip(ids, found.replies, found.likely, strict=True):
            said: list[int] = []
            for _ in range(4):
                with torch.inference_mode():
                    logits = model.network(torch.tensor([[*row, *said]])).logits[0, -1]
                if int(logits.argmax()) in end_tokens(model).tolist():
                    break
                said.append(int(logits.argmax()))
            assert list(reply) == said
            assert likely == pytest.approx(-float(_whole(model, [row], [said])) * len(said) if said else 0, abs=1e-3)
        assert torch.allclose(found.losses, _whole(model, ids, SAID), atol=2e-4)


def test_an_ended_reply_stays_ended(llama, monkeypatch) -> None:
    whole = continued(llama, ROWS, [], 4)
    second = {reply[1] for reply in whole.replies}
    monkeypatch.setattr(continuations, "end_tokens", lambda model: torch.tensor(sorted(second)))
    cut = continued(llama, ROWS, [], 4)
    for reply, likely, longer in zip(cut.replies, cut.likely, whole.replies, strict=True):
        at = next(place for place, token in enumerate(longer) if token in second)
        assert reply == longer[:at]
        assert (likely == 0) == (at == 0)
