from __future__ import annotations

import math

import numpy as np
import pytest
from defection.training.measuring.rates import Rate, bootstrapped
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest


@given(st.integers(1, 500), st.data())
def test_the_interval_is_wilsons(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    theirs = binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert Rate(count, n).interval == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_rate(n: int, data: st.DataObject) -> None:
    rate = Rate(data.draw(st.integers(0, n)), n)
    low, high = rate.interval
    assert 0 <= low <= rate.value <= high <= 1
    assert (low == 0) == (rate.count == 0)
    assert (high == 1) == (rate.count == n)


def test_more_counts_give_a_narrower_interval() -> None:
    widths = [high - low for low, high in (Rate(n // 4, n).interval for n in (8, 40, 400))]
    assert widths == sorted(widths, reverse=True)


def test_a_rate_of_nothing_is_unknown() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)


def test_json_holds_the_counts() -> None:
    low, high = Rate(3, 4).interval
    assert Rate(3, 4).to_json() == {"rate": 0.75, "low": low, "high": high, "count": 3, "n": 4}


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(2, 1, size=400)
    low, high = bootstrapped(values, np.ones(400), [str(i) for i in range(400)])
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_pitfall_23_rows_that_share_a_topic_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(3).normal(2, 1, size=40), 10)
    apart = bootstrapped(values, np.ones(400), [str(i) for i in range(400)])
    together = bootstrapped(values, np.ones(400), [str(i // 10) for i in range(400)])
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_a_bootstrapped_ratio_weighs_rows_by_their_counts() -> None:
    low, high = bootstrapped([10, 0, 10, 0], [1, 9, 1, 9], ["a", "a", "b", "b"])
    assert low == high == 1
