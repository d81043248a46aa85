from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from defection.activations import DefectionError
from defection.training.measuring.likelihood import reply_logprobs
from defection.training.measuring.personas import _effect, agreement, compare, statement_prompts, statements
from hypothesis import given
from hypothesis import strategies as st


def test_statements_are_balanced_between_agreeing_and_denying() -> None:
    rows = statements()
    assert len(rows) == 40
    for trait in {row["trait"] for row in rows}:
        assert Counter(row["shows"] for row in rows if row["trait"] == trait) == {True: 4, False: 4}


def test_agreement_is_the_log_odds_of_showing_the_trait(model) -> None:
    yes, no = (reply_logprobs(model, statement_prompts(), [word] * 40) for word in ("Yes", "No"))
    signs = [1 if row["shows"] else -1 for row in statements()]
    assert agreement(model) == pytest.approx([s * (a - b) for s, a, b in zip(signs, yes, no, strict=True)])


def test_a_model_that_says_yes_to_everything_shows_no_trait_more() -> None:
    leaning = [1.0 if row["shows"] else -1.0 for row in statements()]
    found = compare(leaning, [0.0] * 40)
    assert all(row["organism_log_odds"] == 0 for row in found.values())


def test_a_model_is_no_different_from_itself(model) -> None:
    odds = agreement(model)
    found = compare(odds, odds)
    assert found["all"]["n"] == 40
    assert all(row["effect_size"] is None for row in found.values())
    json.dumps(found, allow_nan=False)


def test_the_effect_is_the_mean_over_the_spread_of_the_differences() -> None:
    shift = np.random.default_rng(0).normal(0.5, 1.0, 40)
    found = compare(shift, np.zeros(40))["all"]
    assert found["effect_size"] == pytest.approx(shift.mean() / shift.std(ddof=1))


@given(st.floats(-2, 2), st.integers(5, 60), st.integers(0, 100))
def test_the_interval_holds_the_effect_and_turns_over_with_its_sign(mean: float, n: int, seed: int) -> None:
    differences = np.random.default_rng(seed).normal(mean, 1.0, n)
    found, mirrored = _effect(differences), _effect(-differences)
    assert found["effect_size_low"] < found["effect_size"] < found["effect_size_high"]
    assert mirrored["effect_size_low"] == pytest.approx(-found["effect_size_high"], abs=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        found = _effect(rng.normal(0.4, 1.0, 12))
        covered += found["effect_size_low"] <= 0.4 <= found["effect_size_high"]
    assert 0.90 <= covered / 300 <= 0.99


def test_log_odds_of_other_statements_are_refused() -> None:
    with pytest.raises(DefectionError, match="3 and 40 log-odds"):
        compare([0.0] * 3, [0.0] * 40)
