from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.evidence.nulls import (
    best_layer,
    covariance_directions,
    moves_labels,
    null_aurocs,
    null_band,
    null_scores,
    p_value,
    permuted_label_aurocs,
    random_directions,
    shuffled_labels,
)
from defection.probes.statistics.metrics import auroc
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score


@pytest.fixture
def noise(make_tests):
    """Residuals that know nothing of their labels."""
    return make_tests(seed=11, shift=0.0)


MARKS = [row % 2 == 1 for row in range(80)]


def test_the_band_of_noise_lies_around_one_half(noise, clean) -> None:
    for areas in null_aurocs(null_scores(noise, clean), MARKS):
        low, high = null_band(areas)
        assert low < 0.5 < high
        assert abs(float(areas.median()) - 0.5) < 0.1


def test_the_width_of_the_band_is_that_of_a_rank_statistic(make_tests, make_residuals, clean) -> None:
    """Over many draws of pure noise the AUROC of n and m scores has variance (n + m + 1) / 12nm."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(80, 4, 2000, generator=generator)
    wide = make_residuals(values, make_tests().prompts)
    reference = make_residuals(torch.randn(60, 4, 2000, generator=generator), clean.prompts)
    # In a wide space random directions are nearly orthogonal, so each gives an independent draw.
    low, high = null_band(null_aurocs(null_scores(wide, reference), MARKS).flatten())
    expected = 2 * 1.96 * sqrt((80 + 1) / (12 * 40 * 40))
    assert high - low == pytest.approx(expected, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_directions_know_no_preferred_side(noise, clean) -> None:
    assert float(null_aurocs(null_scores(noise, clean), MARKS).mean()) == pytest.approx(0.5, abs=0.01)


def test_directions_differ_from_layer_to_layer_and_not_from_call_to_call() -> None:
    once, twice = random_directions(3, 8, count=5), random_directions(3, 8, count=5)
    assert torch.equal(once, twice)
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once, random_directions(3, 8, count=5, seed=1))


def test_directions_are_isotropic() -> None:
    directions = random_directions(1, 6, count=20_000)[0]
    covariance = directions.T @ directions / 20_000
    assert torch.allclose(covariance, torch.eye(6), atol=0.05)


def test_scores_are_standardised_on_clean_prompts(clean) -> None:
    scores = null_scores(clean, clean, count=20)
    assert torch.allclose(scores.mean(dim=-1), torch.zeros(4, 20), atol=1e-4)
    assert torch.allclose(scores.std(dim=-1), torch.ones(4, 20), atol=1e-4)


def test_the_band_over_layers_is_that_of_the_mean_score(noise, clean) -> None:
    scores = null_scores(noise, clean, count=30)
    together = null_aurocs(scores, MARKS, [1, 3])
    assert torch.equal(together, auroc((scores[1] + scores[3]) / 2, MARKS))


def test_the_band_holds_95_percent(noise, clean) -> None:
    areas = null_aurocs(null_scores(noise, clean), MARKS)[0]
    low, high = null_band(areas)
    assert ((areas >= low) & (areas <= high)).double().mean() == pytest.approx(0.95, abs=0.005)


def test_pitfall_16_a_layer_without_variance_does_not_drown_the_others(noise, clean) -> None:
    flat_clean, flat_noise = clean.values.clone(), noise.values.clone()
    flat_clean[:, 0] = flat_noise[:, 0] = torch.linspace(-3, 3, 12).sin() * 7
    scores = null_scores(replace(noise, values=flat_noise), replace(clean, values=flat_clean), count=200)
    assert scores.isfinite().all()
    assert scores[0].abs().max() < 1e-3
    assert torch.equal(scores[1:], null_scores(noise, clean, count=200)[1:])


def test_directions_in_the_datas_covariance_have_it(make_residuals) -> None:
    scale = torch.tensor([3.0, 1.0, 0.1, 0.0])
    values = torch.randn(400, 2, 4, generator=torch.Generator().manual_seed(0)) * scale + 5
    drawn = covariance_directions(values, count=20_000)
    for layer in range(2):
        assert torch.allclose(drawn[layer].T.cov(), values[:, layer].T.cov(), atol=0.25)
        assert drawn[layer].mean(dim=0).abs().max() < 0.1  # around nothing, not around the prompts' mean


def test_pitfall_16_directions_in_the_covariance_of_prompts_alike_are_nothing(clean) -> None:
    flat = clean.values[:1].expand(10, -1, -1)
    assert covariance_directions(flat, count=3).abs().max() == 0
    scores = null_scores(clean, clean, directions=covariance_directions(flat, count=3))
    assert torch.equal(scores, torch.zeros_like(scores))


def test_the_covariance_null_is_wider_where_the_signal_lies_along_what_varies(
    make_residuals, clean, make_tests
) -> None:
    wide = clean.values.clone()
    wide[..., 0] *= 3
    reference = replace(clean, values=wide)
    tests = make_tests(shift=0.0)
    values = tests.values.clone()
    values[..., 0] = values[..., 0] * 3 + torch.tensor(MARKS)[:, None] * 6
    moved = replace(tests, values=values)
    drawn = covariance_directions(reference.values, count=500)
    (low, high), (wide_low, wide_high) = (
        null_band(null_aurocs(null_scores(moved, reference, count=500, directions=each), MARKS)[0])
        for each in (None, drawn)
    )
    assert wide_high - wide_low > high - low


def test_permuted_labels_give_sklearns_auroc_of_the_labels_drawn() -> None:
    """Forty more layers, each high at one prompt alone, tell which labels a draw dealt."""
    rng = np.random.default_rng(0)
    scores, marks = torch.from_numpy(rng.integers(-3, 3, size=(2, 40)).astype(float)), np.arange(40) % 3 == 0
    found = permuted_label_aurocs(torch.cat([scores, torch.eye(40)]), marks, count=30, seed=4)
    drawn = found[2:].T.numpy() > 0.5
    assert (drawn.sum(axis=1) == marks.sum()).all()
    assert len(np.unique(drawn, axis=0)) == 30
    for draw in range(30):
        for layer in range(2):
            assert float(found[layer, draw]) == pytest.approx(roc_auc_score(drawn[draw], scores[layer]), abs=1e-12)


def test_pitfall_23_labels_move_inside_their_topics_only() -> None:
    """A score that is its topic, and topics of one outcome but for one: what they differ in stays in the null."""
    topics = ["a"] * 10 + ["b"] * 10 + ["c"] * 2
    marks = [t == "b" for t in topics[:20]] + [True, False]
    scores = torch.tensor([0.0] * 10 + [1.0] * 10 + [0.4, 0.6])[None]
    inside = permuted_label_aurocs(scores, marks, topics, count=200)
    assert set(inside.flatten().tolist()) == {120 / 121, 1.0}
    across = permuted_label_aurocs(scores, marks, count=200)
    assert float(across.mean()) == pytest.approx(0.5, abs=0.05)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), min_size=2, max_size=12))
def test_pitfall_31_a_shuffle_that_moves_no_label_is_refused(rows: list[tuple[str, bool]]) -> None:
    topics, marks = [topic for topic, _ in rows], [mark for _, mark in rows]
    assume(any(marks) and not all(marks))
    mixed = any({mark for other, mark in rows if other == topic} == {True, False} for topic in topics)
    assert moves_labels(marks, topics) == mixed
    if mixed:
        drawn = shuffled_labels(marks, topics, count=200)
        assert (drawn != torch.tensor(marks)).any()
    else:
        with pytest.raises(DefectionError, match="a shuffle within topics moves none"):
            permuted_label_aurocs(torch.arange(float(len(rows)))[None], marks, topics)


def test_p_values_count_the_observed_one_and_are_never_0() -> None:
    null = torch.tensor([[0.1, 0.5, 0.5, 0.9]])
    assert p_value(torch.tensor([1.0]), null).tolist() == [1 / 5]
    assert p_value(torch.tensor([0.5]), null).tolist() == [4 / 5]
    assert p_value(torch.tensor([0.0]), null).tolist() == [1.0]


def test_pitfall_20_a_best_layer_of_noise_is_significant_as_rarely_as_it_should_be() -> None:
    """Thirty layers of noise: the best AUROC looks impressive and so does its own p-value, but not the adjusted one."""
    rng, best, naive = np.random.default_rng(0), [], []
    marks = np.arange(60) % 2 == 0
    for seed in range(300):
        scores = torch.from_numpy(rng.normal(size=(30, 60)))
        null = permuted_label_aurocs(scores, marks, count=99, seed=seed)
        observed = auroc(scores, marks)
        found = best_layer(observed, null)
        best.append(found.p_value)
        naive.append(float(p_value(observed, null).min()))
        assert found.auroc == float(observed.max())
        assert (found.adjusted >= p_value(observed, null) - 1e-12).all()
    assert 0.02 <= np.mean(np.array(best) <= 0.05) <= 0.09
    assert np.mean(np.array(naive) <= 0.05) > 0.6


def test_pitfall_20_of_layers_that_tie_the_middle_one_is_named() -> None:
    observed = torch.tensor([1.0, 0.9, 1.0, 1.0])
    assert best_layer(observed, torch.full((4, 9), 0.5)).column == 2


def test_a_null_of_other_layers_is_refused() -> None:
    with pytest.raises(DefectionError, match="3 layers do not fit"):
        best_layer(torch.ones(3), torch.ones(4, 9))
