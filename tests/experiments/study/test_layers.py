"""Layer rules that depend on the depth alone."""

from __future__ import annotations

import pytest
from defection.activations import DefectionError
from defection.experiments.run.preregistration import band
from defection.experiments.study.layers import layers_by_rule
from hypothesis import given
from hypothesis import strategies as st


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
