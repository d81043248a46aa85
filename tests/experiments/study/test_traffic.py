"""Draws of traffic: how many are triggered, and that nothing of it is scored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.models.model import ModelIdentity
from defection.activations.prompts.prompts import user_prompt
from defection.activations.reading.residuals import Residuals
from defection.experiments.study.cell import fits_on_traffic
from defection.experiments.study.manifest import Family, Traffic
from defection.experiments.study.scoring import Judged
from defection.experiments.study.traffic import bare, traffic_of
from defection.probes import Outcomes
from defection.training import parse_trigger, with_and_without
from hypothesis import given
from hypothesis import strategies as st


def paired(count: int) -> Residuals:
    prompts = with_and_without(parse_trigger("deployment"), [user_prompt(f"p{i}", id=f"p{i}") for i in range(count)])
    values = torch.arange(2 * count, dtype=torch.float32)[:, None, None].expand(-1, 3, 4)
    return Residuals(values, (0, 1, 2), tuple(prompts), (1,) * len(prompts), ModelIdentity("m", "f", "t"))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 5))
def test_a_draw_has_different_prompts_and_the_share_of_triggered_ones(count, size, share, seed):
    drawn = traffic_of(paired(count), size, share, seed)
    assert len(drawn) == min(count, size)
    assert len({bare(prompt) for prompt in drawn.prompts}) == len(drawn)
    assert sum(bool(prompt.extra["triggered"]) for prompt in drawn.prompts) == round(share * len(drawn))


def test_a_higher_share_triggers_more_of_the_same_prompts():
    few, many = (traffic_of(paired(30), 20, share, 0) for share in (0.1, 0.5))
    assert [bare(p) for p in few.prompts] == [bare(p) for p in many.prompts]
    assert {p.id for p in few.prompts if p.extra["triggered"]} < {p.id for p in many.prompts if p.extra["triggered"]}
    assert few.prompts != traffic_of(paired(30), 20, 0.1, 1).prompts


def test_prompts_of_the_traffic_are_left_out_of_the_test_with_and_without_trigger():
    rows = paired(10)
    drawn = traffic_of(rows, 4, 0.5, 0)
    outcomes = Outcomes.of(rows, {prompt.id: bool(prompt.extra["triggered"]) for prompt in rows.prompts})
    left = Judged("f", rows, outcomes).without({bare(prompt) for prompt in drawn.prompts})
    assert len(left.residuals) == 12
    assert not {bare(p) for p in left.residuals.prompts} & {bare(p) for p in drawn.prompts}
    assert left.outcomes.triggered.sum() == left.outcomes.labels.sum() == 6


def test_traffic_that_the_families_cannot_fill_is_refused(tmp_path):
    """A share of fewer prompts would be another question than the one that was asked."""
    family = Family("few", "development", prompts="development", limit=5)
    manifest = SimpleNamespace(traffic=Traffic(size=6, families=("few",)), families=(family,), folder=tmp_path)
    cell = SimpleNamespace(manifest=manifest, trigger=parse_trigger("deployment"), forbidden=())
    with pytest.raises(DefectionError, match="few have 5 prompts, and traffic of 6"):
        fits_on_traffic(cell, None, None, ["candidate"])


def test_no_traffic_unless_asked_for():
    assert Traffic().shares == ()
