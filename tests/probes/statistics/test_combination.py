from __future__ import annotations

import numpy as np
import pytest
from defection.activations import DefectionError
from defection.probes.statistics.combination import combined
from scipy.stats import combine_pvalues


def test_one_organism_a_unit_is_fishers_combination() -> None:
    p_values = {"a": [0.03], "b": [0.4], "c": [0.01]}
    found = combined(p_values, {key: [0.8] for key in p_values})
    assert found.p == pytest.approx(combine_pvalues([0.03, 0.4, 0.01], method="fisher").pvalue)
    assert (found.above, found.sign_p) == (3, pytest.approx(1 / 8))


def test_pitfall_32_seeds_that_are_the_same_draw_count_once_at_a_price() -> None:
    """Nine copies of one organism say no more than one; their product would have said a great deal."""
    one, nine = combined({"a": [0.03]}, {"a": [0.9]}), combined({"a": [0.03] * 9}, {"a": [0.9] * 9})
    assert one.p < nine.p
    assert nine.p == pytest.approx(0.06)


def test_the_level_holds_whatever_the_dependence_within_a_unit() -> None:
    rng = np.random.default_rng(0)
    for alike in (0.0, 0.7, 1.0):
        rung = 0
        for _ in range(400):
            p_values = {}
            for unit in range(3):
                common = rng.normal()
                mixed = np.sqrt(alike) * common + np.sqrt(1 - alike) * rng.normal(size=4)
                from scipy.stats import norm

                p_values[str(unit)] = norm.sf(mixed).tolist()
            rung += combined(p_values, {key: [0.5] for key in p_values}).p <= 0.05
        assert rung / 400 <= 0.08


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(DefectionError, match="same units"):
        combined({}, {})
    with pytest.raises(DefectionError, match="unit 'a' needs"):
        combined({"a": [0.0]}, {"a": [0.5]})
