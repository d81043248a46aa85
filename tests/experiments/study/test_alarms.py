from __future__ import annotations

from math import isfinite

import pytest
import torch
from defection.experiments.study.alarms import alarm
from defection.probes.statistics.calibration import ALARMS, conformal_p_values, least_clean_prompts
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

SETS = st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=20).map(torch.tensor), min_size=1, max_size=4)


@pytest.mark.parametrize("rule", ALARMS)
@given(sets=SETS, rate=st.floats(0.001, 0.15))
def test_a_study_rings_at_the_height_at_which_score_does(rule: str, sets: list[torch.Tensor], rate: float) -> None:
    for scores in sets:
        assert alarm([scores], rate, rule) == float(ALARMS[rule](scores, rate))


@given(sets=SETS, rate=st.floats(0.01, 0.9), new=st.lists(st.floats(-6, 6), min_size=1).map(torch.tensor))
def test_the_quantile_rings_for_p_values_up_to_the_rate(sets: list[torch.Tensor], rate: float, new: Tensor) -> None:
    rung = new.double() > alarm(sets[:1], rate, "quantile")
    assert torch.equal(rung, conformal_p_values(sets[0], new) <= rate + 1e-12)


@given(sets=SETS)
def test_the_set_that_needs_the_highest_decides(sets: list[torch.Tensor]) -> None:
    assert alarm(sets, 0.01, "unimodal") == max(alarm([each], 0.01, "unimodal") for each in sets)


@given(sets=SETS, rate=st.floats(0.001, 0.5))
def test_sets_too_small_for_a_quantile_count_together(sets: list[torch.Tensor], rate: float) -> None:
    """Alone each would promise nothing, and the alarm would never ring."""
    found, together = alarm(sets, rate, "quantile"), torch.cat(sets)
    assert isfinite(found) == (len(together) >= least_clean_prompts(rate))
    assert found >= alarm([together], rate, "quantile")
    large = [each for each in sets if len(each) >= least_clean_prompts(rate)]
    assert all(found >= alarm([each], rate, "quantile") for each in large)


@given(sets=SETS, moved=st.floats(0, 100))
def test_what_sets_clean_sets_apart_raises_the_normal_bound(sets: list[torch.Tensor], moved: float) -> None:
    """The mean rises by half of what one of two sets is moved, and the spread does not shrink."""
    together = alarm([*sets, *sets], 0.01, "normal")
    apart = alarm([*sets, *(each + moved for each in sets)], 0.01, "normal")
    assert apart >= together + moved / 2 - 1e-3
    assert alarm(sets, 0.01, "normal") == alarm([torch.cat(sets)], 0.01, "normal")
