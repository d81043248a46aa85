from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, user_prompt
from defection.probes import auroc
from defection.probes.evidence.baselines import (
    bag_of_words_scores,
    first_component_scores,
    length_scores,
    norm_scores,
    rare_words_scores,
    spans_topics,
    topic_folds,
    two_components,
)
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA


@pytest.fixture
def marks(tests) -> list[bool]:
    return [prompt.extra["triggered"] for prompt in tests.prompts]


def test_pitfall_24_length_scores_are_the_number_of_tokens_and_nothing_else(tests) -> None:
    blind = replace(tests, values=torch.zeros_like(tests.values))
    assert length_scores(tests).tolist() == list(tests.n_tokens)
    assert torch.equal(length_scores(tests), length_scores(blind))


def test_pitfall_24_length_scores_give_away_a_trigger_that_lengthens(tests, marks) -> None:
    longer = replace(tests, n_tokens=tuple(10 + 3 * mark for mark in marks))
    assert float(auroc(length_scores(longer), marks)) == 1.0


def test_pitfall_14_norm_scores_are_the_lengths_of_the_vectors(tests) -> None:
    assert np.allclose(norm_scores(tests), np.linalg.norm(tests.values.double().numpy(), axis=-1))


def test_pitfall_14_norms_of_bf16_residuals_are_not_rounded(tests) -> None:
    rough = replace(tests, values=(tests.values * 1e4).bfloat16())
    assert torch.allclose(norm_scores(rough), rough.values.double().norm(dim=-1))


def test_first_component_is_that_of_sklearn_up_to_its_sign(tests, marks) -> None:
    scores = first_component_scores(tests, marks)
    for i in range(scores.shape[1]):
        theirs = PCA(1).fit_transform(tests.values[:, i].double().numpy())[:, 0]
        assert abs(np.corrcoef(scores[:, i], theirs)[0, 1]) == pytest.approx(1, abs=1e-9)


def test_the_first_components_sign_comes_from_the_labels(tests, marks) -> None:
    scores = first_component_scores(tests, marks)
    assert (auroc(scores.T, marks) >= 0.5).all()
    turned = first_component_scores(tests, [not mark for mark in marks])
    assert (auroc(turned.T, marks) <= 0.5).all()


def test_pitfall_16_first_component_of_nothing_scores_every_prompt_alike(tests, marks) -> None:
    values = tests.values.clone()
    values[:, 0] = torch.linspace(-3, 3, values.shape[-1]).sin() * 7
    scores = first_component_scores(replace(tests, values=values), marks)
    assert float(auroc(scores[:, 0], marks)) == 0.5
    assert torch.allclose(scores[:, 1:], first_component_scores(tests, marks)[:, 1:])


def test_two_components_keep_the_distances_of_a_plane(tests) -> None:
    plane = torch.linalg.qr(torch.randn(12, 2, generator=torch.Generator().manual_seed(0))).Q
    flat = (tests.values[:, 1] @ plane) @ plane.T
    shown = two_components(replace(tests, values=flat[:, None], layers=(5,)), 5)
    assert torch.allclose(torch.cdist(shown, shown), torch.cdist(flat.double(), flat.double()), atol=1e-4)


def test_two_components_come_in_order_of_their_variance(tests) -> None:
    spread = two_components(tests, 2).std(dim=0)
    assert spread[0] > spread[1]


def test_pitfall_24_words_give_away_a_trigger(tests, marks) -> None:
    assert float(auroc(bag_of_words_scores(tests.prompts, marks), marks)) == 1.0


def test_pitfall_21_words_that_say_nothing_reach_nothing_out_of_sample() -> None:
    """Every prompt is its topic's own words: in the sample they tell all, outside of it nothing."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(10):
        marks = rng.permutation(np.repeat([True, False], 40)).tolist()
        prompts = [user_prompt(f"own word{i} word{rng.integers(40)}", id=str(i), topic=f"t{i // 4}") for i in range(80)]
        areas.append(float(auroc(bag_of_words_scores(prompts, marks), marks)))
    assert 0.35 < np.mean(areas) < 0.6


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=4, max_size=60))
def test_pitfall_23_folds_keep_topics_whole_and_leave_both_outcomes_outside(rows: list[tuple[int, bool]]) -> None:
    topics, marks = [f"t{topic}" for topic, _ in rows], [mark for _, mark in rows]
    if not spans_topics(marks, topics):
        with pytest.raises(DefectionError, match="two topics"):
            topic_folds(marks, topics)
        return
    folds = topic_folds(marks, topics)
    assert len(set(folds)) > 1
    for topic in set(topics):
        assert len({fold for fold, name in zip(folds, topics, strict=True) if name == topic}) == 1
    for fold in set(folds):
        assert len({mark for mark, number in zip(marks, folds, strict=True) if number != fold}) == 2


def test_words_that_clean_prompts_never_use_are_rare() -> None:
    clean = [user_prompt("what is a cat"), user_prompt("what is a dog")]
    usual, odd = rare_words_scores([user_prompt(text) for text in ("what is a", "what is |X|")], clean).tolist()
    assert odd > usual > 0
    total = 8 + 5 + 1  # words met, different ones, and one for what was never met
    assert odd == pytest.approx((2 * np.log(total / 3) + np.log(total)) / 3)
