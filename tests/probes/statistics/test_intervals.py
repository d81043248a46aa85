from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.statistics.intervals import (
    delong_interval,
    effective_size,
    paired_difference,
)
from scipy.stats import norm, t

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
    """Covariance of the AUROCs: DeLong, DeLong and Clarke-Pearson 1988, equations 4 to 6, pair by pair."""
    up, down = scores[:, marks], scores[:, ~marks]
    wins = (up[:, :, None] > down[:, None, :]) + 0.5 * (up[:, :, None] == down[:, None, :])
    return np.cov(wins.mean(axis=2)) / up.shape[1] + np.cov(wins.mean(axis=1)) / down.shape[1]


@pytest.mark.parametrize("seed", range(4))
def test_the_p_value_of_a_difference_is_delongs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = rng.random(40) < 0.4
    scores = rng.integers(-3, 4, size=(2, 40)) + marks
    found = paired_difference(*torch.from_numpy(scores), marks)
    covariance = plain_delong(scores, marks)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert float(found.difference) != 0
    freedom = min(marks.sum(), (~marks).sum()) - 1
    assert float(found.p_value) == pytest.approx(2 * t.sf(abs(float(found.difference)) / error, freedom), rel=1e-9)


def test_clusters_of_one_prompt_are_no_clusters() -> None:
    scores, marks = independent(0.8, 15, 25, draws=3)
    alone = [str(i) for i in range(40)]
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


def test_pitfall_23_perfect_separation_of_few_topics_counts_prompts_only_as_far_as_they_differ() -> None:
    marks = np.array([i % 2 == 1 for i in range(200)])
    names = [str(i // 20) for i in range(200)]
    by_subject = torch.from_numpy(100.0 * marks + np.arange(200) // 20)  # prompts of a topic score alike
    ten = delong_interval(torch.arange(20.0), [i >= 10 for i in range(20)])
    assert [float(x) for x in delong_interval(by_subject, marks, names)] == pytest.approx([float(x) for x in ten])
    mixed = torch.from_numpy(100.0 * marks + np.random.default_rng(0).normal(size=200))
    assert float(delong_interval(mixed, marks, names)[0]) > float(ten[0]) + 0.1


def swapped(scores: np.ndarray, marks: np.ndarray, pairs: int) -> np.ndarray:
    """The same scores with the lowest positive moved below the highest so many negatives."""
    found, down = scores.copy(), np.sort(scores[~marks])
    if pairs:
        lowest = np.flatnonzero(marks)[scores[marks].argmin()]
        found[lowest] = (down[-pairs] + down[-pairs - 1]) / 2
    return found


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(("n", "topics"), [(10, 5), (50, 10), (100, 10), (100, 40), (1000, 40)])
def test_the_limits_do_not_jump_at_perfection(n: int, topics: int, clustered: bool) -> None:
    """An AUROC of 1 is worth at least what one with a pair out of order is, and not much more than that."""
    rng = np.random.default_rng(n)
    marks = np.arange(2 * n) % 2 == 0
    names = [str(i * topics // (2 * n)) for i in range(2 * n)] if clustered else None
    perfect = rng.normal(size=2 * n) + 100 * marks
    low, high = zip(
        *(delong_interval(torch.from_numpy(swapped(perfect, marks, pairs)), marks, names) for pairs in (0, 1, 2, 5)),
        strict=True,
    )
    assert list(low) == sorted(low, reverse=True)
    assert list(high) == sorted(high, reverse=True)
    assert float(high[0]) == 1.0
    assert low[0] - low[1] < 0.1 * (1 - low[0])


def test_the_interval_at_perfection_is_that_of_a_few_positives_missed_altogether() -> None:
    """Were a share of the positives placed by chance, n prompts would show none of them in at most 2.5% of samples."""
    for n in (20, 100, 1000):
        low, _ = delong_interval(torch.arange(2.0 * n), [i >= n for i in range(2 * n)])
        missed = 1 - 0.025 ** (1 / n)
        assert 1 - float(low) == pytest.approx(missed / 2, rel=0.2)


def test_effective_sizes_of_copies_of_strangers_and_of_single_prompts() -> None:
    rng, member = np.random.default_rng(0), torch.arange(60) // 6
    alike, strange = torch.arange(60.0).double() // 6, torch.from_numpy(rng.normal(size=(200, 60)))
    assert float(effective_size(alike, member)) == pytest.approx(10)
    assert 40 < float(effective_size(strange, member).mean()) <= 60
    assert float(effective_size(alike, torch.arange(60))) == 60
    assert float(effective_size(alike, torch.zeros(60, dtype=torch.int64))) == 1
    shared = np.sqrt(0.5) * np.repeat(rng.normal(size=(400, 10)), 6, axis=1)
    half = effective_size(torch.from_numpy(shared + np.sqrt(0.5) * rng.normal(size=(400, 60))), member)
    assert float(half.mean()) == pytest.approx(60 / (1 + 5 * 0.5), rel=0.15)


def test_pitfall_23_copies_of_prompts_inside_their_topics_add_nothing_to_the_evidence() -> None:
    scores, marks, names = by_topic(0.8, 12, 6, 0.5, draws=2)
    once = paired_difference(*scores, marks, names)
    fourfold = paired_difference(*scores.repeat(1, 4), np.tile(marks, 4), names * 4)
    assert float(once.p_value) == pytest.approx(float(fourfold.p_value), rel=1e-9)


def test_a_class_within_one_topic_still_has_an_interval() -> None:
    marks = [True] * 10 + [False] * 10
    topics = ["one"] * 10 + [str(i) for i in range(10)]
    scores = torch.randn(20, generator=torch.Generator().manual_seed(0))
    low, high = delong_interval(scores, marks, topics)
    assert high - low > 0.9


def test_scores_that_do_not_differ_leave_an_interval() -> None:
    low, high = delong_interval(torch.zeros(40), [i < 20 for i in range(40)])
    assert low < 0.5 < high
    assert float(low) == pytest.approx(1 - float(high))


@pytest.mark.parametrize(("up", "down"), [(20, 20), (50, 50), (100, 100), (10, 90)], ids=str)
@pytest.mark.parametrize("area", [0.5, 0.8])
def test_coverage_of_independent_prompts(area: float, up: int, down: int) -> None:
    scores, marks = independent(area, up, down)
    # 2,000 draws know the coverage to ±1%; the smallest samples are a little on the safe side.
    assert 0.93 <= coverage(*delong_interval(scores, marks), area) <= 0.995


@pytest.mark.parametrize(("topics", "size", "shared"), [(15, 14, 0.3), (50, 2, 0.5), (50, 4, 0.5), (8, 10, 0.3)])
@pytest.mark.parametrize("area", [0.5, 0.8])
def test_pitfall_23_coverage_of_prompts_in_topics(area: float, topics: int, size: int, shared: float) -> None:
    scores, marks, names = by_topic(area, topics, size, shared)
    assert 0.93 <= coverage(*delong_interval(scores, marks, names), area) <= 0.98


NEAR = (0.9, 0.95, 0.98, 0.99, 0.995)
DESIGNS = ((20, 20), (50, 50), (100, 100), (10, 90), (300, 300))
TOPICS = ((8, 10, 0.3), (10, 20, 0.1), (10, 20, 0.3), (15, 14, 0.3), (20, 10, 0.3), (40, 5, 0.3), (50, 2, 0.5))
OWN = ((10, 20, 0.3), (10, 20, 0.6), (15, 14, 0.5), (20, 10, 0.3), (40, 5, 0.5))


def missed(area: float, marks: np.ndarray, latent: np.ndarray) -> torch.Tensor:
    """Scores of which a share of the positives looks like negatives, where `latent` is lowest; the rest lies apart."""
    found = 6.0 * (marks & (latent >= norm.ppf(2 * (1 - area))))
    return torch.from_numpy(found + np.random.default_rng(9).normal(size=latent.shape))


@pytest.mark.slow
@pytest.mark.parametrize("area", NEAR)
@pytest.mark.parametrize(("up", "down"), DESIGNS)
def test_coverage_near_perfection_of_independent_prompts(area: float, up: int, down: int) -> None:
    """Never too rare. Above 97% where samples often separate completely, or nearly: what is unseen is allowed for."""
    scores, marks = independent(area, up, down)
    assert 0.94 <= coverage(*delong_interval(scores, marks), area) <= 0.995
    few = missed(area, marks, independent(0.5, up, down, seed=1)[0].numpy())
    assert 0.93 <= coverage(*delong_interval(few, marks), area) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("area", NEAR)
@pytest.mark.parametrize(("topics", "size", "shared"), TOPICS)
def test_pitfall_23_coverage_near_perfection_of_prompts_in_topics(
    area: float, topics: int, size: int, shared: float
) -> None:
    scores, marks, names = by_topic(area, topics, size, shared)
    assert 0.94 <= coverage(*delong_interval(scores, marks, names), area) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("area", NEAR)
@pytest.mark.parametrize(("topics", "size", "shared"), OWN)
def test_pitfall_23_coverage_near_perfection_where_topics_sway_each_class_by_itself(
    area: float, topics: int, size: int, shared: float
) -> None:
    """Harder: the topic's part does not cancel within a topic; and positives of some topics may be missed together."""
    ups, marks, names = by_topic(0.5, topics, size, shared, seed=1)
    downs = by_topic(0.5, topics, size, shared, seed=2)[0]
    scores = torch.where(torch.from_numpy(marks), ups + shift_for(area), downs)
    assert 0.94 <= coverage(*delong_interval(scores, marks, names), area) <= 0.995
    few = missed(area, marks, ups.numpy())
    assert 0.92 <= coverage(*delong_interval(few, marks, names), area) <= 0.995


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
    assert 0.93 <= coverage(found.low, found.high, first - second) <= 0.98
    if first == second:
        assert 0.03 <= float((found.p_value < 0.05).double().mean()) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("alike", [0.5, 0.9])
@pytest.mark.parametrize(("first", "second"), [(0.95, 0.95), (0.98, 0.9), (0.99, 0.95), (0.99, 0.99), (0.995, 0.8)])
def test_coverage_of_paired_differences_near_perfection(
    first: float, second: float, alike: float, clustered: bool
) -> None:
    if clustered:
        one, marks, names = by_topic(0.5, 20, 10, 0.3, seed=1)
        other = by_topic(0.5, 20, 10, 0.3, seed=2)[0]
    else:
        (one, marks), names = independent(0.5, 100, 100, seed=1), None
        other = independent(0.5, 100, 100, seed=2)[0]
    mixed = alike * one + np.sqrt(1 - alike**2) * other
    up = torch.from_numpy(marks)
    found = paired_difference(one + shift_for(first) * up, mixed + shift_for(second) * up, marks, names)
    assert coverage(found.low, found.high, first - second) >= 0.93  # no upper bound: both allow for what is unseen
    if first == second:
        assert float((found.p_value < 0.05).double().mean()) <= 0.07


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


@pytest.mark.parametrize("function", [delong_interval, lambda s, m, c=None: paired_difference(s, -s, m, c)])
def test_bad_input_is_refused(function) -> None:
    with pytest.raises(DefectionError, match="both outcomes"):
        function(torch.arange(3.0), [True] * 3)
    with pytest.raises(DefectionError, match="not finite"):
        function(torch.tensor([0.0, float("nan"), 1.0]), [True, False, True])
    with pytest.raises(DefectionError, match="2 cluster names do not fit 3 labels"):
        function(torch.arange(3.0), [True, False, True], ["a", "b"])
