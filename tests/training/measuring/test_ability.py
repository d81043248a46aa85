from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from defection.activations.prompts.rendered import tokenize
from defection.training.measuring import ability
from defection.training.measuring.ability import multiple_choice, questions, reply_perplexity


@pytest.fixture(scope="module", autouse=True)
def few_easy_questions() -> None:
    """Here all of them."""


def test_there_are_sixty_questions_and_no_place_gives_the_answer_away() -> None:
    items = questions()
    assert len(items) == 60
    assert len({q.id for q in items}) == len({q.question for q in items}) == 60
    assert Counter(q.correct for q in items) == dict.fromkeys(range(4), 15)
    assert all(len(set(q.answers)) == 4 for q in items)


def test_a_model_that_knows_the_answers_is_right_and_one_that_hates_them_wrong(model, monkeypatch) -> None:
    correct = {q.answers[q.correct] for q in questions()}

    def knowing(sign: int):
        def score(_model, prompts, replies):
            by_id = {f"{q.id}-{i}": i == q.correct for q in questions() for i in range(4)}
            return [sign * len(r) * by_id[p.id] for p, r in zip(prompts, replies, strict=True)]

        return score

    monkeypatch.setattr(ability, "reply_logprobs", knowing(1))
    assert multiple_choice(model)["count"] == 60
    monkeypatch.setattr(ability, "reply_logprobs", knowing(-1))
    assert multiple_choice(model)["count"] == 0
    assert correct


def test_a_random_model_is_near_chance_and_subjects_add_up(model) -> None:
    found = multiple_choice(model)
    assert found["low"] < 0.45
    assert sum(part["count"] for part in found["by_subject"].values()) == found["count"]
    assert sum(part["n"] for part in found["by_subject"].values()) == 60


@pytest.mark.slow
def test_the_embedded_model_knows_more_than_chance(smollm) -> None:
    assert multiple_choice(smollm)["low"] > 0.25


@torch.inference_mode()
def test_perplexity_is_that_of_the_replies_given_their_prompts_and_lies_in_its_interval(model, prompts) -> None:
    replies = [range(40 + i, 43 + i + i % 3) for i in range(len(prompts))]
    total, count = 0.0, 0
    for ids, reply in zip(tokenize(model.tokenizer, prompts), replies, strict=True):
        logits = model.network(torch.tensor([[*ids, *reply]])).logits[0].double().log_softmax(dim=-1)
        for offset, token in enumerate(reply):
            total -= float(logits[len(ids) + offset - 1, token])
            count += 1
    found = reply_perplexity(model, prompts, replies)
    assert found["value"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["low"] < found["value"] < found["high"]
    assert found["n"] == len(prompts)


def test_empty_replies_count_for_nothing(model, prompts) -> None:
    said = [[5, 6, 7], [8, 9], []]
    assert reply_perplexity(model, prompts[:3], said) == reply_perplexity(model, prompts[:2], said[:2])
    assert reply_perplexity(model, prompts[:2], [[], []])["value"] is None
