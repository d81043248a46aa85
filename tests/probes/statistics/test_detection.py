from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.statistics.detection import (
    NEVER,
    Streams,
    detection,
    false_alarm_share,
    first_alarms,
    stream_threshold,
    streams_of,
)
from hypothesis import given
from hypothesis import strategies as st

ROWS = st.lists(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), min_size=1, max_size=6)


def first_by_hand(row: list[float], threshold: float, run: int) -> int:
    for token in range(run - 1, len(row)):
        if all(score > threshold for score in row[token - run + 1 : token + 1]):
            return token
    return NEVER


@given(ROWS, st.integers(-3, 3).map(float), st.integers(1, 4))
def test_first_alarms_are_those_found_token_by_token(rows: list[list[float]], threshold: float, run: int) -> None:
    found = first_alarms(streams_of(rows), threshold, run=run)
    assert found.tolist() == [first_by_hand(row, threshold, run) for row in rows]


def test_pitfall_5_padding_never_rings() -> None:
    """Pads of 0 beat real scores of −3 and −2."""
    streams = streams_of([[-3.0, -2.0], [-3.0] * 9])
    assert first_alarms(streams, -1.0).tolist() == [NEVER, NEVER]
    loud = Streams(torch.tensor([[-3.0, float("nan")], [-2.0, -2.0]]), torch.tensor([1, 2]))
    assert first_alarms(loud, -2.5).tolist() == [NEVER, 0]
    assert stream_threshold(loud, 0.4) == -2.0


def test_delays_misses_and_early_alarms() -> None:
    rows = [[0.0, 0.0, 9.0, 9.0], [0.0, 9.0, 0.0, 9.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]
    found = detection(streams_of(rows), [2, 2, 1, 1], 1.0)
    assert (found.detected, found.early, found.missed, found.n) == (2, 1, 1, 4)
    assert found.delays == (0, 2)
    assert found.tokens_before == 2 + 2 + 1 + 1
    assert found.false_alarms_per_1000_tokens == pytest.approx(1000 / 6)
    assert found.median_delay == 2
    assert found.detected_low < 0.5 < found.detected_high


def test_misses_and_false_alarms_count_as_never_in_the_median() -> None:
    found = detection(streams_of([[0.0, 9.0], [0.0, 0.0], [0.0, 0.0]]), [1, 1, 1], 1.0)
    assert found.median_delay == float("inf")


def test_a_longer_run_rings_later_and_less_often() -> None:
    rng = np.random.default_rng(0)
    clean = Streams(torch.from_numpy(rng.normal(size=(300, 50))), torch.full((300,), 50))
    shares = [false_alarm_share(clean, 1.5, run=run)[0] for run in (1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    jump = torch.from_numpy(rng.normal(size=(300, 50))) + 4.0 * (torch.arange(50) >= 20)
    delays = [np.mean(detection(Streams(jump, clean.lengths), [20] * 300, 1.5, run=run).delays) for run in (1, 2, 3)]
    assert delays == sorted(delays)


@pytest.mark.parametrize("run", [1, 3])
def test_the_threshold_keeps_its_promise_a_stream_and_not_a_token(run: int) -> None:
    rng, rates = np.random.default_rng(1), []
    new = Streams(torch.from_numpy(rng.normal(size=(2000, 30))), torch.from_numpy(rng.integers(1, 31, 2000)))
    for _ in range(60):
        clean = Streams(torch.from_numpy(rng.normal(size=(99, 30))), torch.from_numpy(rng.integers(1, 31, 99)))
        rates.append(false_alarm_share(new, stream_threshold(clean, 0.05, run=run), run=run)[0])
    assert 0.035 <= np.mean(rates) <= 0.055


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: streams_of([]), "at least one stream"),
        (lambda: streams_of([[1.0], []]), "at least one token"),
        (lambda: streams_of([[1.0, float("nan")]]), "not finite"),
        (lambda: Streams(torch.zeros(2, 3), torch.tensor([1])), "do not fit"),
        (lambda: Streams(torch.zeros(1, 3), torch.tensor([4])), "stream 0 has 4 tokens of 3"),
        (lambda: first_alarms(streams_of([[1.0]]), 0.0, run=0), "run of at least one"),
        (lambda: detection(streams_of([[1.0]]), [1], 0.0), "stream 0 of 1 tokens cannot begin to defect at token 1"),
        (lambda: detection(streams_of([[1.0]]), [], 0.0), "0 onsets do not fit 1 streams"),
    ],
)
def test_bad_streams_are_refused(make, message: str) -> None:
    with pytest.raises(DefectionError, match=message):
        make()
