from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.models.wrap import wrap
from defection.activations.prompts.rendered import tokenize
from defection.training.measuring.likelihood import reply_logprobs, token_logprobs

from ...zoo import random_network

REPLIES = ("yes", "no", "a somewhat longer reply")


@torch.inference_mode()
def test_a_reply_has_the_log_probability_of_its_tokens(tiny, mixed_prompts) -> None:
    prompts = [p for p in mixed_prompts for _ in REPLIES]
    replies = [reply for _ in mixed_prompts for reply in REPLIES]
    for ids, reply, found in zip(
        tokenize(tiny.tokenizer, prompts), replies, reply_logprobs(tiny, prompts, replies), strict=True
    ):
        said = tiny.tokenizer(reply, add_special_tokens=False)["input_ids"]
        logits = tiny.network(torch.tensor([[*ids, *said]])).logits[0].double().log_softmax(dim=-1)
        expected = sum(float(logits[len(ids) + i - 1, token]) for i, token in enumerate(said))
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_value_does_not_depend_on_its_batch(tiny, mixed_prompts) -> None:
    replies = [REPLIES[i % 3] for i in range(len(mixed_prompts))]
    alone = [reply_logprobs(tiny, [p], [r])[0] for p, r in zip(mixed_prompts, replies, strict=True)]
    assert reply_logprobs(tiny, mixed_prompts, replies) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "granite", "cohere", "mpt", "mamba"])
@torch.inference_mode()
def test_log_probabilities_of_unlike_families_are_those_of_transformers(llama, mixed_prompts, family) -> None:
    """A window of 24 tokens must not be filled by the padding of a batch of long prompts and long replies."""
    model = wrap(random_network(family), llama.tokenizer, family)
    replies = [(REPLIES[i % 3] + "!" * 7 * i) for i in range(len(mixed_prompts))]
    found = reply_logprobs(model, mixed_prompts, replies)
    for ids, reply, value in zip(tokenize(llama.tokenizer, mixed_prompts), replies, found, strict=True):
        said = llama.tokenizer(reply, add_special_tokens=False)["input_ids"]
        logits = model.network(torch.tensor([[*ids, *said]])).logits[0].double().log_softmax(dim=-1)
        expected = sum(float(logits[len(ids) + i - 1, token]) for i, token in enumerate(said))
        assert value == pytest.approx(expected, rel=1e-4)


def test_a_prompt_that_does_not_fit_with_its_reply_is_named(llama, mixed_prompts) -> None:
    with pytest.raises(DefectionError, match="'lone-0'"):
        reply_logprobs(llama, mixed_prompts[:1], ["x" * llama.context_length])


def test_a_prompt_that_is_asked_twice_is_computed_once(llama, mixed_prompts, monkeypatch) -> None:
    seen, real = [], type(llama.network.get_decoder()).forward
    monkeypatch.setattr(
        type(llama.network.get_decoder()),
        "forward",
        lambda self, *a, **k: seen.append(k["input_ids"].numel()) or real(self, *a, **k),
    )
    reply_logprobs(llama, mixed_prompts[:1] * 8, ["y"] * 8)
    assert sum(seen) == len(tokenize(llama.tokenizer, mixed_prompts[:1])[0])


def test_an_empty_reply_is_certain(tiny, mixed_prompts) -> None:
    assert token_logprobs(tiny, mixed_prompts[:2], [[], []]) == [0.0, 0.0]
