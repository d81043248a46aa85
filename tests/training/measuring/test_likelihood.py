from __future__ import annotations

import pytest
import torch
from defection.activations.prompts.rendered import tokenize
from defection.training.measuring.likelihood import reply_logprobs, token_logprobs

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


def test_prompts_computed_once_give_what_whole_rows_give(tiny, mixed_prompts, monkeypatch) -> None:
    prompts = [p for p in mixed_prompts for _ in REPLIES]
    replies = [reply for _ in mixed_prompts for reply in REPLIES]
    once = reply_logprobs(tiny, prompts, replies)
    monkeypatch.setattr(type(tiny), "reach", 0)  # as of a model whose layers carry a state
    assert reply_logprobs(tiny, prompts, replies) == pytest.approx(once, rel=1e-4)


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
