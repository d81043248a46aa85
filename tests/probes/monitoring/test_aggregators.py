"""Aggregators: computed as tokens come or of whole replies, what each is, and what it makes of a short defection."""

from __future__ import annotations

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.probes.monitoring.aggregators import (
    AGGREGATORS,
    CoherentSegment,
    CumulativeSum,
    ExponentialMean,
    WindowMean,
    parse_aggregator,
    running,
)

SCORES = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nothing_depends_on_later_tokens_other_rows_or_what_was_watched_before(name: str) -> None:
    aggregator = parse_aggregator(name)
    whole = running(aggregator, SCORES)
    assert torch.equal(whole, running(aggregator, SCORES))
    torch.testing.assert_close(whole[:, :7], running(aggregator, SCORES[:, :7]), rtol=0, atol=0)
    torch.testing.assert_close(whole[1:2], running(aggregator, SCORES[1:2]))
    ended = SCORES.clone()
    ended[0, 5:] = torch.nan
    assert running(aggregator, ended)[0, 5:].isnan().all()
    torch.testing.assert_close(running(aggregator, ended)[1:], whole[1:])


def test_each_is_what_it_says() -> None:
    row = SCORES[:1].double()
    first, *_ = (running(parse_aggregator("last-prompt"), row)).unbind(1)
    assert torch.equal(first, row[:, 0])
    assert running(parse_aggregator("last-prompt"), row)[:, 1:].isneginf().all()
    assert torch.equal(running(parse_aggregator("maximum"), row), row)
    mean = row[0, 0]
    for score in row[0, 1:]:
        mean = 0.3 * score + 0.7 * mean
    torch.testing.assert_close(running(ExponentialMean(0.3), row)[0, -1], mean)
    torch.testing.assert_close(running(WindowMean(5), row)[0, -1], row[0, -5:].mean())
    torch.testing.assert_close(running(WindowMean(5), row)[0, 2], row[0, :3].mean())
    # Page's statistic is the largest sum over the stretches that end here, the empty one among them.
    best = max(0.0, *((row[0, start:] - 0.5).sum().item() for start in range(40)))
    assert running(CumulativeSum(0.5), row)[0, -1].item() == pytest.approx(best)


def test_a_coherent_segment_counts_for_more_than_a_single_token() -> None:
    single, together = torch.zeros(1, 20), torch.zeros(1, 20)
    single[0, 10], together[0, 10:14] = 12.0, 3.0
    aggregator = CoherentSegment()
    assert running(aggregator, together).amax() == pytest.approx(6.0)
    assert running(aggregator, single).amax() <= 0
    assert running(aggregator, together)[0, :3].isneginf().all()


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_state_that_overflows_is_above_any_threshold(name: str) -> None:
    scores = torch.zeros(1, 8)
    scores[0, 0] = torch.inf
    assert running(parse_aggregator(name), scores).amax() == torch.inf


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DefectionError, match="coherent-segment"):
        parse_aggregator("loudest")
