from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.intervals import (
    bootstrap_difference,
    delong_covariance,
    delong_interval,
    newcombe_interval,
    paired_difference,
)
from defection.probes.metrics import auroc, auroc_interval
from scipy.stats import norm

DRAWS = 2000


def shift_for(area: float) -> float:
    """Distance of two unit normals whose AUROC this is."""
    return float(np.sqrt(2) * norm.ppf(area))


def independent(area: float, up: int, down: int, seed: int = 0, draws: int = DRAWS) -> tuple[torch.Tensor, np.ndarray]:
    marks = np.arange(up + down) < up
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(draws, up + down)) + shift_for(area) * marks
    ), marks


def by_topic(
    area: float, topics: int, size: int, shared: float, seed: int = 0, draws: int = DRAWS
) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Half of each topic is positive; the prompts of a topic have `shared` of their variance in common."""
    rng = np.random.default_rng(seed)
    marks = np.tile(np.arange(size) % 2 == 0, topics)
    common = np.repeat(rng.normal(size=(draws, topics)), size, axis=1) * np.sqrt(shared)
    own = rng.normal(size=(draws, topics * size)) * np.sqrt(1 - shared)
    names = [f"topic-{i // size:03d}" for i in range(topics * size)]
    return torch.from_numpy(common + own + shift_for(area) * marks), marks, names


def coverage(low: torch.Tensor, high: torch.Tensor, truth: float) -> float:
    return float(((low <= truth) & (truth <= high)).double().mean())


def plain_delong(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """DeLong, DeLong and Clarke-Pearson 1988, equations 4 to 6, pair by pair."""
    up, down = scores[:, marks], scores[:, ~marks]
    wins = (up[:, :, None] > down[:, None, :]) + 0.5 * (up[:, :, None] == down[:, None, :])
    return np.cov(wins.mean(axis=2)) / up.shape[1] + np.cov(wins.mean(axis=1)) / down.shape[1]


@pytest.mark.parametrize("seed", range(4))
def test_the_covariance_is_delongs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = rng.random(40) < 0.4
    scores = rng.integers(-3, 4, size=(3, 40)) + marks
    assert np.allclose(delong_covariance(torch.from_numpy(scores), marks), plain_delong(scores, marks), atol=1e-12)


def test_clusters_of_one_prompt_are_no_clusters() -> None:
    scores, marks = independent(0.8, 15, 25, draws=3)
    alone = [str(i) for i in range(40)]
    assert torch.allclose(delong_covariance(scores, marks, alone), delong_covariance(scores, marks), atol=1e-14)
    with_names, without = delong_interval(scores, marks, alone), delong_interval(scores, marks)
    assert all(torch.equal(a, b) for a, b in zip(with_names, without, strict=True))


def test_batched_intervals_equal_single_ones() -> None:
    scores, marks, topics = by_topic(0.9, 6, 8, 0.3, draws=6)
    low, high = delong_interval(scores.view(2, 3, -1), marks, topics)
    for row, (a, b) in enumerate(zip(low.flatten(), high.flatten(), strict=True)):
        assert (float(a), float(b)) == pytest.approx([float(x) for x in delong_interval(scores[row], marks, topics)])


@pytest.mark.parametrize("turned", [False, True])
def test_turned_scores_turn_the_interval(turned: bool) -> None:
    scores, marks, topics = by_topic(1.0 - 1e-12 if turned else 0.9, 6, 8, 0.3, draws=4)
    low, high = delong_interval(scores, marks, topics)
    other_low, other_high = delong_interval(-scores, marks, topics)
    assert torch.allclose(low, 1 - other_high, atol=1e-12)
    assert torch.allclose(high, 1 - other_low, atol=1e-12)


def test_perfect_separation_has_an_interval_that_narrows_with_the_number_of_prompts() -> None:
    lows = []
    for n in (5, 20, 100):
        low, high = delong_interval(torch.arange(2.0 * n), [i >= n for i in range(2 * n)])
        assert float(high) == 1.0
        lows.append(float(low))
    assert lows == sorted(lows)
    assert 0.5 < lows[0] < 0.8
    assert 0.97 < lows[-1] < 0.99


def test_pitfall_23_perfect_separation_of_few_topics_is_worth_as_many_prompts() -> None:
    marks = [i % 2 == 1 for i in range(200)]
    scores = torch.tensor(marks).double() + torch.linspace(0, 0.1, 200)
    by_ten = delong_interval(scores, marks, [str(i // 20) for i in range(200)])
    ten = delong_interval(torch.arange(20.0), [i >= 10 for i in range(20)])
    assert by_ten == ten


def test_a_class_within_one_topic_still_has_an_interval_but_no_variance() -> None:
    marks = [True] * 10 + [False] * 10
    topics = ["one"] * 10 + [str(i) for i in range(10)]
    scores = torch.randn(20, generator=torch.Generator().manual_seed(0))
    low, high = delong_interval(scores, marks, topics)
    assert high - low > 0.4
    with pytest.raises(DefectionError, match="two topics"):
        delong_covariance(scores[None], marks, topics)


def test_newcombes_bounds_solve_his_equation() -> None:
    area, m, n = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64), 20, 30
    low, high = newcombe_interval(area, m, n, 1.96)
    for found, theta in ((area[1:], low[1:]), (area[:-1], high[:-1])):
        size = (m + n) / 2 - 1
        variance = theta * (1 - theta) / (m * n) * (1 + size * (1 - theta) / (2 - theta) + size * theta / (1 + theta))
        assert torch.allclose((found - theta).abs(), 1.96 * variance.sqrt(), atol=1e-9)
    assert (float(low[0]), float(high[-1])) == (0.0, 1.0)


@pytest.mark.parametrize(("up", "down"), [(20, 20), (50, 50), (100, 100), (10, 90)], ids=str)
@pytest.mark.parametrize("area", [0.5, 0.8, 0.95])
def test_coverage_of_independent_prompts(area: float, up: int, down: int) -> None:
    scores, marks = independent(area, up, down)
    # 2,000 draws know the coverage to ±1%; the smallest samples are a little on the safe side.
    assert 0.93 <= coverage(*delong_interval(scores, marks), area) <= 0.98


@pytest.mark.parametrize(("topics", "size", "shared"), [(15, 14, 0.3), (50, 2, 0.5), (50, 4, 0.5), (8, 10, 0.3)])
@pytest.mark.parametrize("area", [0.5, 0.8, 0.95])
def test_pitfall_23_coverage_of_prompts_in_topics(area: float, topics: int, size: int, shared: float) -> None:
    scores, marks, names = by_topic(area, topics, size, shared)
    assert 0.93 <= coverage(*delong_interval(scores, marks, names), area) <= 0.97


def test_coverage_near_perfection_where_many_samples_separate_completely() -> None:
    """At 0.99 a quarter of 20 + 20 samples show an AUROC of 1: Newcombe's interval makes up for them, and more."""
    scores, marks = independent(0.99, 20, 20)
    low, high = delong_interval(scores, marks)
    perfect = auroc(scores, marks) == 1
    assert perfect.double().mean() > 0.2
    assert (high > low).all()
    assert 0.95 <= coverage(low, high, 0.99) <= 0.99
    scores, marks, names = by_topic(0.99, 15, 14, 0.3)
    assert 0.91 <= coverage(*delong_interval(scores, marks, names), 0.99) <= 0.97  # few topics: a little too narrow


@pytest.mark.parametrize(("area", "least", "most"), [(0.5, 0.88, 0.95), (0.95, 0.83, 0.92), (0.99, 0.75, 0.88)])
def test_the_percentile_bootstrap_covers_too_rarely_with_15_topics(area: float, least: float, most: float) -> None:
    """Why DeLong's interval stands beside it: near 1 the bootstrap cannot draw what it has not seen."""
    scores, marks, names = by_topic(area, 15, 14, 0.3)
    assert least <= coverage(*auroc_interval(scores, marks, names, draws=400), area) <= most


def test_coverage_of_the_bootstrap_over_many_topics() -> None:
    scores, marks, names = by_topic(0.8, 60, 4, 0.3)
    assert 0.93 <= coverage(*auroc_interval(scores, marks, names, draws=500), 0.8) <= 0.97


@pytest.mark.parametrize(("first", "second", "alike"), [(0.5, 0.5, 0.5), (0.8, 0.7, 0.5), (0.95, 0.9, 0.5)])
@pytest.mark.parametrize("clustered", [False, True])
def test_coverage_of_paired_differences(first: float, second: float, alike: float, clustered: bool) -> None:
    if clustered:
        one, marks, names = by_topic(0.5, 15, 14, 0.3, seed=1)
        other = by_topic(0.5, 15, 14, 0.3, seed=2)[0]
    else:
        (one, marks), names = independent(0.5, 50, 50, seed=1), None
        other = independent(0.5, 50, 50, seed=2)[0]
    mixed = alike * one + np.sqrt(1 - alike**2) * other
    up = torch.from_numpy(marks)
    found = paired_difference(one + shift_for(first) * up, mixed + shift_for(second) * up, marks, names)
    assert 0.93 <= coverage(found.low, found.high, first - second) <= 0.975
    if first == second:
        assert 0.03 <= float((found.p_value < 0.05).double().mean()) <= 0.07


def test_paired_differences_turn_with_the_order() -> None:
    scores, marks, names = by_topic(0.8, 10, 6, 0.3, draws=2)
    there, back = (paired_difference(scores[i], scores[1 - i], marks, names) for i in range(2))
    assert float(there.difference) == pytest.approx(-float(back.difference))
    assert float(there.low) == pytest.approx(-float(back.high))
    assert float(there.p_value) == pytest.approx(float(back.p_value))


def test_two_perfect_probes_differ_by_nothing_give_or_take_something() -> None:
    marks = [i >= 20 for i in range(40)]
    found = paired_difference(torch.arange(40.0), torch.arange(40.0) ** 2, marks)
    assert (float(found.difference), float(found.p_value)) == (0.0, 1.0)
    assert found.low < 0 < found.high
    opposite = paired_difference(torch.arange(40.0), -torch.arange(40.0), marks)
    assert float(opposite.p_value) < 1e-6
    assert opposite.low > 0.5


def test_pairing_makes_the_interval_of_a_difference_narrower() -> None:
    scores, marks = independent(0.8, 60, 60, draws=1)
    near = scores[0] + 0.1 * torch.randn(120, generator=torch.Generator().manual_seed(0))
    paired = paired_difference(scores[0], near, marks)
    low, high = delong_interval(scores[0], marks)
    assert paired.high - paired.low < 0.5 * (high - low)


def test_coverage_of_the_difference_of_two_models_that_behave_differently() -> None:
    """Their labels differ, their prompts do not."""
    one, marks, names = by_topic(0.8, 60, 4, 0.3, seed=1, draws=DRAWS)
    other = by_topic(0.7, 60, 4, 0.3, seed=2, draws=DRAWS)[0]
    turned = np.roll(marks, 1)
    low, high = bootstrap_difference(one, other.roll(1, dims=1), marks, turned, names, draws=400)
    assert 0.93 <= coverage(low, high, 0.1) <= 0.97


@pytest.mark.parametrize("function", [delong_interval, lambda s, m, c=None: delong_covariance(s[None], m, c)])
def test_bad_input_is_refused(function) -> None:
    with pytest.raises(DefectionError, match="both outcomes"):
        function(torch.arange(3.0), [True] * 3)
    with pytest.raises(DefectionError, match="not finite"):
        function(torch.tensor([0.0, float("nan"), 1.0]), [True, False, True])
    with pytest.raises(DefectionError, match="2 cluster names do not fit 3 labels"):
        function(torch.arange(3.0), [True, False, True], ["a", "b"])
