import math

import pytest
import torch
from defection.activations import load_model, user_prompt
from defection.training.measuring.divergence import jensen_shannon, reply_distributions
from scipy.spatial.distance import jensenshannon

PROMPTS = [user_prompt(text, id=text) for text in ("Who?", "Where does the river end?")]


def test_distributions_are_transformers_own_at_every_token_of_the_reply(llama_folder) -> None:
    model = load_model(llama_folder, device="cpu", dtype="fp32")
    from defection.activations.prompts.rendered import render

    rows, replies = render(model.tokenizer, PROMPTS), [[70, 71, 72], [80]]
    found = reply_distributions(model, PROMPTS, replies)
    for row, said, seen in zip(rows, replies, found, strict=True):
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([[*row.ids, *said]])).logits[0]
        wanted = logits[len(row.ids) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-4)


def test_the_divergence_is_scipys_squared_symmetric_and_between_0_and_1() -> None:
    one, other = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = jensen_shannon(one, other)
    wanted = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(one.exp().numpy(), other.exp().numpy(), strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(found, jensen_shannon(other, one))
    assert jensen_shannon(one, one).abs().max() < 1e-6
    sure = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    assert jensen_shannon(sure, sure.flip(0)).tolist() == [1.0, 1.0]
