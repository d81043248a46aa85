from collections.abc import Sequence
from itertools import pairwise

import pytest
from defection.activations.reading.batching import (
    KEYS_PER_TOKEN,
    MAX_ROWS,
    PASSES_A_BUDGET,
    TOKENS_PER_ROW,
    Batch,
    plan_batches,
)
from hypothesis import given
from hypothesis import strategies as st

# Few distinct tokens and repeated stems, so that random rows do share prefixes.
stems = st.lists(st.lists(st.integers(0, 2), max_size=60), min_size=1, max_size=4)
row_lists = stems.flatmap(
    lambda heads: st.lists(
        st.builds(
            lambda head, tail: tuple(head) + tuple(tail),
            st.sampled_from(heads),
            st.lists(st.integers(0, 2), min_size=1, max_size=10),
        ),
        max_size=40,
    )
)
budgets = st.integers(1, 400)
costs = st.integers(0, 200)


def computed(ids: Sequence[Sequence[int]], batches: Sequence[Batch]) -> int:
    """Tokens that go through the model, padding left out; batches in a row that share a prefix compute it once."""
    total, before = 0, ()
    for batch in batches:
        distinct = {tuple(ids[row]) for row in batch.rows}
        prefix = tuple(ids[batch.rows[0]][: batch.prefix_length])
        total += sum(len(row) - len(prefix) for row in distinct) + (len(prefix) if prefix != before else 0)
        before = prefix
    return total


def padded(ids: Sequence[Sequence[int]], batches: Sequence[Batch]) -> int:
    """Tokens that go through the model when nothing is shared, padding included."""
    return sum(len({tuple(ids[r]) for r in b.rows}) * max(len(ids[r]) for r in b.rows) for b in batches)


@given(row_lists, budgets, costs, st.booleans())
def test_every_row_is_in_exactly_one_batch(ids: list[Sequence[int]], budget: int, cost: int, share: bool) -> None:
    batches = plan_batches(ids, max_tokens=budget, share_prefixes=share, group_cost=cost)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(ids)))


@given(row_lists, budgets, costs)
def test_a_shared_prefix_is_the_same_in_every_row_and_shorter_than_each(
    ids: list[Sequence[int]], budget: int, cost: int
) -> None:
    for batch in plan_batches(ids, max_tokens=budget, group_cost=cost):
        assert len({tuple(ids[row][: batch.prefix_length]) for row in batch.rows}) == 1
        assert all(len(ids[row]) > batch.prefix_length for row in batch.rows)


@given(row_lists, budgets, costs, st.booleans())
def test_a_batch_keeps_to_its_size_unless_it_is_one_row(
    ids: list[Sequence[int]], budget: int, cost: int, share: bool
) -> None:
    for batch in plan_batches(ids, max_tokens=budget, share_prefixes=share, group_cost=cost):
        width = max(len(ids[row]) for row in batch.rows) - batch.prefix_length
        distinct = len({tuple(ids[row]) for row in batch.rows})
        assert distinct == 1 or distinct * width <= budget


def test_a_small_batch_has_at_most_max_rows() -> None:
    batches = plan_batches([[i] for i in range(3 * MAX_ROWS + 1)], max_tokens=TOKENS_PER_ROW * MAX_ROWS)
    assert max(len(batch.rows) for batch in batches) == MAX_ROWS
    assert len(batches) == 4


@given(row_lists, budgets)
def test_sharing_never_computes_more_tokens(ids: list[Sequence[int]], budget: int) -> None:
    shared = plan_batches(ids, max_tokens=budget)
    assert computed(ids, shared) <= sum(len(row) for row in ids)


@given(row_lists, budgets)
def test_rows_meet_in_the_same_batches_whenever_they_are_planned(ids: list[Sequence[int]], budget: int) -> None:
    """PITFALLS 15: a resumed run must repeat the batches of the one that was cut off."""
    assert plan_batches([list(row) for row in ids], max_tokens=budget) == plan_batches(ids, max_tokens=budget)


@given(st.lists(st.integers(1, 60), max_size=9), budgets, costs)
def test_no_other_cut_by_length_costs_less(lengths: list[int], budget: int, cost: int) -> None:
    """Against every way of cutting the rows, longest first, into batches that fit."""
    ids = [[row] * length for row, length in enumerate(lengths)]
    ordered = sorted(lengths, reverse=True)
    cost = max(cost, budget // PASSES_A_BUDGET)

    def least(start: int) -> int:
        if start == len(ordered):
            return 0
        ends = range(start + 1, len(ordered) + 1)
        fitting = [end for end in ends if end == start + 1 or (end - start) * ordered[start] <= budget]
        return min((end - start) * ordered[start] + cost + least(end) for end in fitting)

    batches = plan_batches(ids, max_tokens=budget, share_prefixes=False, group_cost=cost)
    assert padded(ids, batches) + cost * len(batches) == least(0)


def test_a_few_long_prompts_do_not_pad_the_many_short_ones() -> None:
    ids = [[row] * length for row, length in enumerate([200, 190] + [20] * 30)]
    assert [len(batch.rows) for batch in plan_batches(ids)] == [2, 30]


@given(row_lists)
def test_nothing_is_shared_when_not_wanted(ids: list[Sequence[int]]) -> None:
    assert all(batch.prefix_length == 0 for batch in plan_batches(ids, share_prefixes=False))


def test_a_long_common_start_is_computed_once() -> None:
    system = list(range(300))
    ids = [[*system, 1000 + i] for i in range(10)]
    assert plan_batches(ids) == [Batch(tuple(range(10)), 300)]


def test_two_families_of_rows_share_each_its_own_start() -> None:
    first, second = [0, *range(10, 400)], [0, *range(500, 900)]
    ids = [[*(first, second)[i % 2], 2000 + i] for i in range(20)]
    assert {batch.prefix_length for batch in plan_batches(ids)} == {len(first), len(second)}


def test_a_start_too_short_to_pay_for_itself_is_not_shared() -> None:
    assert [batch.prefix_length for batch in plan_batches([[0, 1], [0, 2]])] == [0]


def test_a_row_that_starts_the_others_does_not_keep_them_from_sharing() -> None:
    system = list(range(600))
    ids = [system[:5], *([*system, 1000 + i] for i in range(10))]
    assert computed(ids, plan_batches(ids)) < 2 * len(system)


@given(row_lists, budgets, costs, st.booleans())
def test_equal_rows_are_in_one_batch_side_by_side(
    ids: list[Sequence[int]], budget: int, cost: int, share: bool
) -> None:
    lines = [[tuple(ids[row]) for row in b.rows] for b in plan_batches(ids, max_tokens=budget, group_cost=cost)]
    changes = [sum(a != b for a, b in pairwise(line)) + 1 for line in lines]
    assert sum(changes) == len({tuple(row) for row in ids})


def test_equal_rows_are_one_row_to_compute() -> None:
    assert plan_batches([list(range(500))] * 300) == [Batch(tuple(range(300)), 0)]


def test_a_row_that_starts_another_still_runs_its_last_token() -> None:
    assert plan_batches([list(range(500)), list(range(520))]) == [Batch((1, 0), 499)]


@given(row_lists, budgets)
def test_attention_never_looks_at_more_keys_than_the_budget_allows(ids: list[Sequence[int]], budget: int) -> None:
    for batch in plan_batches(ids, max_tokens=budget):
        distinct = {tuple(ids[row]) for row in batch.rows}
        assert len(distinct) == 1 or len(distinct) * max(map(len, distinct)) <= KEYS_PER_TOKEN * budget


def test_a_deep_tree_of_prefixes_does_not_overflow() -> None:
    ids = [[0] * depth + [1] for depth in range(1500)]
    batches = plan_batches(ids)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(ids)))


@pytest.mark.parametrize("share", [True, False])
def test_no_rows_make_no_batches(share: bool) -> None:
    assert plan_batches([], share_prefixes=share) == []


@given(row_lists, budgets, costs)
def test_the_longest_row_that_shares_a_prefix_carries_it(ids: list[Sequence[int]], budget: int, cost: int) -> None:
    options = {"max_tokens": budget, "group_cost": cost}
    plain, carried = plan_batches(ids, **options), plan_batches(ids, carry=True, **options)
    assert sorted(row for batch in carried for row in batch.rows) == list(range(len(ids)))
    before: tuple[int, ...] = ()
    for batch in carried:
        prefix = tuple(ids[batch.rows[0]][: batch.prefix_length])
        if prefix and prefix != before:
            assert len({tuple(ids[row]) for row in batch.rows}) == 1
            sharing = [r for b in carried for r in b.rows if tuple(ids[r][: b.prefix_length]) == prefix]
            assert len(ids[batch.rows[0]]) == max(len(ids[row]) for row in sharing)
        before = prefix
    shares = [sum(1 for batch in plan if batch.prefix_length) for plan in (plain, carried)]
    assert shares[1] <= shares[0] + len({tuple(ids[b.rows[0]][: b.prefix_length]) for b in plain if b.prefix_length})
    assert computed(ids, carried) == computed(ids, plain)
