from __future__ import annotations

import pytest
import torch
from defection.experiments.study_alarms import ALARMS, alarm
from defection.probes.calibration import ALARMS as OF_ONE_SET
from hypothesis import given
from hypothesis import strategies as st

SETS = st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=20).map(torch.tensor), min_size=1, max_size=4)


def test_studies_know_the_alarms_that_score_knows() -> None:
    assert set(ALARMS) == set(OF_ONE_SET)


@pytest.mark.parametrize("rule", ["quantile", "unimodal"])
@given(sets=SETS)
def test_the_set_that_needs_the_highest_decides(rule: str, sets: list[torch.Tensor]) -> None:
    assert alarm(sets, 0.01, rule) == max(alarm([each], 0.01, rule) for each in sets)


@given(sets=SETS, moved=st.floats(0, 100))
def test_what_sets_clean_sets_apart_raises_the_normal_bound(sets: list[torch.Tensor], moved: float) -> None:
    """The mean rises by half of what one of two sets is moved, and the spread does not shrink."""
    together = alarm([*sets, *sets], 0.01, "normal")
    apart = alarm([*sets, *(each + moved for each in sets)], 0.01, "normal")
    assert apart >= together + moved / 2 - 1e-3
    assert alarm(sets, 0.01, "normal") == alarm([torch.cat(sets)], 0.01, "normal")
