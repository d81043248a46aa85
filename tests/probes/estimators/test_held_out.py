"""Clean prompts in parts: each is scored by a fit that did not see it."""

from __future__ import annotations

import numpy as np
import pytest
from defection.activations import DefectionError, user_prompt
from defection.probes.estimators.fitting import clean_folds, group_folds
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 12))
def test_every_row_is_held_out_once_and_topics_stay_together(topics: list[int], folds: int) -> None:
    parts = group_folds(topics, folds)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(topics)))
    assert 2 <= len(parts) <= folds
    assert all(len(part) for part in parts)
    if len(set(topics)) > 1:
        assert sum(len({topics[row] for row in part.tolist()}) for part in parts) == len(set(topics))


@given(st.permutations(range(30)))
def test_parts_do_not_depend_on_the_order_of_prompts(order: list[int]) -> None:
    prompts = [user_prompt(f"prompt {row}", topic=f"topic {row % 7}") for row in range(30)]
    here, there = (
        {frozenset(p[i].id for i in part.tolist()) for part in clean_folds(p)}
        for p in (prompts, [prompts[row] for row in order])
    )
    assert here == there


def test_parts_are_even_where_topics_are() -> None:
    assert [len(part) for part in group_folds(np.repeat(np.arange(10), 10))] == [20] * 5


def test_few_rows_are_held_out_one_by_one() -> None:
    assert [len(part) for part in group_folds(range(19))] == [1] * 19
    assert [len(part) for part in group_folds(range(20))] == [4] * 5


def test_a_single_row_or_fold_is_refused() -> None:
    for groups, folds in (([1], 5), ([1, 2], 1)):
        with pytest.raises(DefectionError, match="take two at least"):
            group_folds(groups, folds)
