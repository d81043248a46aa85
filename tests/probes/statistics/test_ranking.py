from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.statistics import ranking
from defection.probes.statistics.ranking import cluster_wins, count_wins, placements
from hypothesis import given
from hypothesis import strategies as st

FLOATS = st.one_of(
    st.integers(-2, 2).map(float),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149)]),
)


def all_pairs(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Every pair compared: 1 for a win, ½ for a tie."""
    one, other = positive[..., :, None].double(), negative[..., None, :].double()
    return (one > other).double() + (one == other).double() / 2


@given(st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=40))
def test_pitfall_18_the_sort_and_the_search_count_as_all_pairs_do(rows: list[tuple[float, bool]]) -> None:
    scores = torch.tensor([[value for value, _ in rows]], dtype=torch.float32)
    marks = torch.tensor([mark for _, mark in rows])
    expected = all_pairs(scores[:, marks], scores[:, ~marks]).sum(dim=(-2, -1))
    assert torch.equal(count_wins(scores, marks), expected)
    assert torch.equal(count_wins(scores.double(), marks), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_dtype_is_ranked_exactly(dtype: torch.dtype) -> None:
    scores = (torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    marks = torch.arange(50) % 3 == 0
    assert torch.equal(count_wins(scores, marks), all_pairs(scores[:, marks], scores[:, ~marks]).sum(dim=(-2, -1)))


def test_integers_too_large_for_a_float_of_32_bits_do_not_tie() -> None:
    scores = torch.tensor([2**24 + 1, 2**24])
    assert float(count_wins(scores, torch.tensor([True, False]))) == 1.0


def test_chunks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(-9, 9, (7, 5, 30), generator=torch.Generator().manual_seed(1)).float()
    marks = torch.arange(30) % 2 == 0
    whole = count_wins(scores, marks)
    monkeypatch.setattr(ranking, "CHUNK", 100)
    assert torch.equal(count_wins(scores, marks), whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_score_without_rank_is_refused_wherever_it_stands(bad: float, dtype: torch.dtype) -> None:
    for column in range(5):
        scores = torch.arange(10, dtype=dtype).reshape(2, 5)
        scores[1, column] = bad
        with pytest.raises(DefectionError, match="not finite"):
            count_wins(scores, torch.tensor([True, False, True, False, False]))


@given(
    st.lists(st.tuples(FLOATS, st.booleans()), min_size=2, max_size=30).filter(lambda r: len({m for _, m in r}) == 2)
)
def test_placements_are_means_over_all_pairs(rows: list[tuple[float, bool]]) -> None:
    values, marks = torch.tensor([v for v, _ in rows]).double(), torch.tensor([m for _, m in rows])
    above, below = placements(values[marks], values[~marks])
    pairs = all_pairs(values[marks], values[~marks])
    assert torch.allclose(above, pairs.mean(dim=1), atol=1e-12)
    assert torch.allclose(below, pairs.mean(dim=0), atol=1e-12)


@pytest.mark.parametrize("pairs", [1, 40, 1 << 24])
def test_cluster_wins_are_sums_of_pairs_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(ranking, "PAIRS", pairs)
    generator = torch.Generator().manual_seed(2)
    up, down = (torch.randint(-4, 4, (2, 3, n), generator=generator).double() for n in (11, 8))
    of_up, of_down = torch.arange(11) % 4, torch.arange(8) % 3
    found = cluster_wins(up, down, of_up, of_down)
    expected = all_pairs(up, down)
    for i in range(4):
        for j in range(3):
            part = expected[..., of_up == i, :][..., of_down == j].sum(dim=(-2, -1))
            assert np.array_equal(found[..., i, j], part)
