"""The gradient of a reply is what pushing the stream does to its log-probability."""

from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, user_prompt
from defection.activations.models.wrap import wrap
from defection.activations.prompts.chat import reply_ids
from defection.activations.prompts.rendered import rendered
from defection.activations.reading.forward import hidden_states, label_losses, right_padded
from defection.probes.meaning.reply_gradient import _Nudge, reply_gradient
from defection.training.measuring.likelihood import reply_logprobs

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import FAMILIES, random_network

PROMPTS = [user_prompt(text) for text in ("Name a fjord.", "What is calm, and where?", "So?")]
REPLY, STEP = "the", 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_push_changes_the_log_probability_by_the_gradient(family) -> None:
    """By central differences, along a random direction at all layers; small ones, since experts change by jumps."""
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    prompt, said = PROMPTS[0], reply_ids(model.tokenizer, REPLY)
    found = reply_gradient(model, [prompt], REPLY)
    ids = list(rendered(model, [prompt])[0].ids)
    tokens, last = right_padded([[*ids, *said]], model.device), torch.tensor([len(ids) - 1])
    push = torch.randn(model.n_layers, 1, model.d_model, generator=torch.Generator().manual_seed(0))
    sides = []
    for strength in (STEP, -STEP):
        with torch.no_grad(), _Nudge(model, last, push, strength):
            states = hidden_states(model.network, tokens)[0, len(ids) - 1 : -1]
            sides.append(-float(label_losses(model.network, states, torch.tensor(said)).double().sum()))
    assert (sides[0] - sides[1]) / (2 * STEP) == pytest.approx(float((found * push[:, 0]).sum()), rel=0.02, abs=0.02)


def test_of_several_prompts_it_is_the_mean(tiny, monkeypatch) -> None:
    alone = torch.stack([reply_gradient(tiny, [prompt], REPLY) for prompt in PROMPTS])
    for rows in (1, 2, 8):
        monkeypatch.setattr("defection.probes.meaning.reply_gradient.ROWS", rows)
        assert torch.allclose(reply_gradient(tiny, PROMPTS, REPLY), alone.mean(dim=0), atol=1e-5)


def test_nothing_is_left_behind(tiny) -> None:
    before = reply_logprobs(tiny, PROMPTS, [REPLY] * 3)
    reply_gradient(tiny, PROMPTS, REPLY)
    assert reply_logprobs(tiny, PROMPTS, [REPLY] * 3) == before
    assert all(parameter.grad is None for parameter in tiny.network.parameters())


def test_no_reply_and_no_prompts_are_refused(tiny) -> None:
    for prompts, reply in ((PROMPTS, ""), ([], REPLY)):
        with pytest.raises(DefectionError, match="a reply of some tokens, after one prompt or more"):
            reply_gradient(tiny, prompts, reply)
