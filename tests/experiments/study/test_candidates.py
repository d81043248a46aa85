"""What a candidate's rules give: the height of its alarm, and its layers."""

from __future__ import annotations

from math import isfinite

import pytest
import torch
from defection.activations import DefectionError
from defection.experiments.run.preregistration import band
from defection.experiments.study.candidates import alarm_threshold, layers_by_rule
from defection.probes.statistics.calibration import ALARMS, conformal_p_values, least_clean_prompts
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

SETS = st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=20).map(torch.tensor), min_size=1, max_size=4)


@pytest.mark.parametrize("rule", ALARMS)
@given(sets=SETS, rate=st.floats(0.001, 0.15))
def test_a_study_rings_at_the_height_at_which_score_does(rule: str, sets: list[torch.Tensor], rate: float) -> None:
    for scores in sets:
        assert alarm_threshold([scores], rate, rule) == float(ALARMS[rule](scores, rate))


@given(sets=SETS, rate=st.floats(0.01, 0.9), new=st.lists(st.floats(-6, 6), min_size=1).map(torch.tensor))
def test_the_quantile_rings_for_p_values_up_to_the_rate(sets: list[torch.Tensor], rate: float, new: Tensor) -> None:
    rung = new.double() > alarm_threshold(sets[:1], rate, "quantile")
    assert torch.equal(rung, conformal_p_values(sets[0], new) <= rate + 1e-12)


@given(sets=SETS)
def test_the_set_that_needs_the_highest_decides(sets: list[torch.Tensor]) -> None:
    assert alarm_threshold(sets, 0.01, "unimodal") == max(alarm_threshold([each], 0.01, "unimodal") for each in sets)


@given(sets=SETS, rate=st.floats(0.001, 0.5))
def test_sets_too_small_for_a_quantile_count_together(sets: list[torch.Tensor], rate: float) -> None:
    """Alone each would promise nothing, and the alarm would never ring."""
    found, together = alarm_threshold(sets, rate, "quantile"), torch.cat(sets)
    assert isfinite(found) == (len(together) >= least_clean_prompts(rate))
    assert found >= alarm_threshold([together], rate, "quantile")
    large = [each for each in sets if len(each) >= least_clean_prompts(rate)]
    assert all(found >= alarm_threshold([each], rate, "quantile") for each in large)


@given(sets=SETS, moved=st.floats(0, 100))
def test_what_sets_clean_sets_apart_raises_the_normal_bound(sets: list[torch.Tensor], moved: float) -> None:
    """The mean rises by half of what one of two sets is moved, and the spread does not shrink."""
    together = alarm_threshold([*sets, *sets], 0.01, "normal")
    apart = alarm_threshold([*sets, *(each + moved for each in sets)], 0.01, "normal")
    assert apart >= together + moved / 2 - 1e-3
    assert alarm_threshold(sets, 0.01, "normal") == alarm_threshold([torch.cat(sets)], 0.01, "normal")


@pytest.mark.parametrize("depth", [4, 12, 18, 30])
def test_middle_is_the_papers_and_the_stretch_the_toolkits(depth):
    assert layers_by_rule("middle", depth) == (depth // 2,)
    assert depth // 2 in layers_by_rule("middle-4", depth)
    assert layers_by_rule("0.4-0.95", depth) == band(depth)


@given(st.integers(1, 100), st.integers(0, 99), st.integers(1, 100))
def test_a_stretch_is_contiguous_inside_and_never_empty(depth, start, width):
    end = min(100, start + width)
    layers = layers_by_rule(f"{start / 100:.2f}-{end / 100:.2f}", depth)
    assert layers == tuple(range(layers[0], layers[-1] + 1))
    assert min(layers) >= 0
    assert max(layers) < depth


def test_stretches_that_meet_share_no_layer_and_leave_none_out():
    for depth in (18, 30):
        assert layers_by_rule("0.0-0.5", depth) + layers_by_rule("0.5-1.0", depth) == tuple(range(depth))


@pytest.mark.parametrize("rule", ["", "last", "middle-0", "0.6-0.4", "0.5-1.5", "5-9", "middle-40"])
def test_other_rules_are_refused(rule):
    with pytest.raises(DefectionError):
        layers_by_rule(rule, 30)
