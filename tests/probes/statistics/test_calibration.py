from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.statistics.calibration import (
    ALARMS,
    ROOM,
    conformal_p_values,
    conformal_threshold,
    false_positives_by_set,
    normal_threshold,
    unimodal_threshold,
    worst_set_fpr,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import expon, gamma, kstest, laplace, lognorm, norm, t, triang, uniform

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_p_values_count_clean_prompts_at_least_as_high(clean: list[float], scores: list[float]) -> None:
    found = conformal_p_values(torch.tensor(clean), torch.tensor(scores))
    assert found.tolist() == [(1 + sum(c >= s for c in clean)) / (1 + len(clean)) for s in scores]


@given(SCORES, st.floats(0.01, 0.99))
def test_pitfall_19_of_all_n_plus_1_prompts_no_more_than_the_target_ring_the_others_threshold(
    prompts: list[float], target: float
) -> None:
    """The conformal argument itself: leave each prompt out in turn, ties included."""
    values = torch.tensor([*prompts, 0.0], dtype=torch.float64)
    rung = 0
    for i in range(len(values)):
        others = torch.cat([values[:i], values[i + 1 :]])
        rung += bool(values[i] > conformal_threshold(others, target))
    assert rung <= target * len(values) + 1e-6


@pytest.mark.parametrize(("n", "target"), [(99, 0.01), (100, 0.01), (200, 0.05), (19, 0.05)])
def test_new_clean_prompts_ring_at_the_target_rate(n: int, target: float) -> None:
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, n)))
    rates = norm.sf(conformal_threshold(scores, target).numpy())
    k = int(target * (n + 1) + 1e-9)
    assert rates.mean() == pytest.approx(k / (n + 1), rel=0.05)


def test_too_few_clean_prompts_promise_nothing_and_never_ring() -> None:
    assert conformal_threshold(torch.arange(98.0), 0.01) == float("inf")
    assert conformal_threshold(torch.arange(99.0), 0.01) == 98.0


UNIMODAL = [norm(), uniform(), expon(), laplace(), t(3), gamma(0.3), triang(1.0), lognorm(0.5), lognorm(1.5)]


@pytest.mark.parametrize("family", UNIMODAL, ids=lambda f: f"{f.dist.name}{f.args}")
@given(target=st.floats(0.001, 1 / 6))
def test_no_unimodal_distribution_passes_its_bound_more_often_than_the_target(family, target: float) -> None:
    # Two values with the distribution's mean and spread stand for infinitely many.
    two = torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5 * float(family.std()) + float(family.mean())
    assert family.sf(float(unimodal_threshold(two, target))) <= target + 1e-12


@given(target=st.floats(0.001, 1 / 6))
def test_the_bound_is_reached_by_a_point_mass_with_a_uniform_tail(target: float) -> None:
    """Mercadier and Strobel 2021: 1 − 3·target of it at 0, the rest even over 0 … 1. No lower bound would do."""
    share = 3 * target
    mean, spread = share / 2, (share / 3 - share**2 / 4) ** 0.5
    two = torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5 * spread + mean
    assert share * (1 - float(unimodal_threshold(two, target))) == pytest.approx(target)


SPREADS = (normal_threshold, unimodal_threshold)


@pytest.mark.parametrize("threshold", SPREADS)
@given(clean=SCORES.filter(lambda scores: len(scores) > 1), unit=st.floats(0.1, 10), zero=st.floats(-5, 5))
def test_the_bound_moves_with_the_scores_unit_and_zero(threshold, clean: list[float], unit: float, zero: float) -> None:
    scores = torch.tensor(clean, dtype=torch.float64)
    moved = unit * float(threshold(scores)) + zero
    assert float(threshold(unit * scores + zero)) == pytest.approx(moved, abs=1e-9)


def test_the_three_alarms_stand_in_order_where_scores_are_normal() -> None:
    spread = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    normal = torch.from_numpy(norm.ppf(spread.numpy()))
    found = [float(rule(normal, 0.01)) for rule in ALARMS.values()]
    assert found == sorted(found)
    assert float(norm.sf(found[1])) == pytest.approx(0.01 / ROOM, rel=0.05)


def test_the_bound_refuses_what_it_cannot_promise() -> None:
    for threshold in SPREADS:
        with pytest.raises(DefectionError, match="at least two"):
            threshold(torch.tensor([1.0]))
    with pytest.raises(DefectionError, match="1/6"):
        unimodal_threshold(torch.arange(9.0), 0.2)


def test_p_values_of_clean_prompts_are_uniform_and_agree_with_the_threshold() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(4000, 200)))
    clean, new = values[:, 1:], values[:, :1]
    p = conformal_p_values(clean, new)
    assert kstest(p.flatten().numpy(), "uniform").pvalue > 0.01
    assert torch.equal(p.squeeze(1) <= 0.05, new.squeeze(1) > conformal_threshold(clean, 0.05))


@pytest.mark.parametrize("function", [conformal_threshold, lambda clean: conformal_p_values(clean, clean)])
def test_bad_clean_scores_are_refused(function) -> None:
    with pytest.raises(DefectionError, match="at least one clean prompt"):
        function(torch.empty(0))
    with pytest.raises(DefectionError, match="not finite"):
        function(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1])
def test_a_target_that_is_no_rate_is_refused(target: float) -> None:
    with pytest.raises(DefectionError, match="between 0 and 1"):
        conformal_threshold(torch.arange(9.0), target)


def test_pitfall_24_the_worst_set_is_reported_and_positives_do_not_count() -> None:
    scores = torch.tensor([0.0, 2.0, 2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0])
    labels = [False, True, True, False, False, False, False, False, False]
    sets = ["easy", "easy", "easy", "easy", "coding", "coding", "coding", "easy", "easy"]
    worst = worst_set_fpr(scores, labels, sets, 1.0)
    assert (worst.test_set, worst.count, worst.n, worst.rate) == ("coding", 1, 3, 1 / 3)
    assert [each.test_set for each in false_positives_by_set(scores, labels, sets, 1.0)] == ["coding", "easy"]


def test_intervals_of_all_sets_hold_together() -> None:
    rng, held, draws, sets = np.random.default_rng(2), 0, 2000, np.repeat(list("abcde"), 40)
    for scores in torch.from_numpy(rng.uniform(size=(draws, 200))):
        found = false_positives_by_set(scores, np.zeros(200, dtype=bool), sets, 0.9)
        held += all(each.low <= 0.1 <= each.high for each in found)
    assert held / draws >= 0.94


def test_a_false_positive_rate_needs_negatives_and_fitting_lengths() -> None:
    with pytest.raises(DefectionError, match="all labels are True"):
        worst_set_fpr(torch.arange(2.0), [True, True], ["a", "a"], 0.5)
    with pytest.raises(DefectionError, match="do not fit"):
        worst_set_fpr(torch.arange(2.0), [True, False], ["a"], 0.5)
