from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import AttentionProbe, LogisticProbe, Ragged
from defection.probes.estimators.ragged import one_token_each

LAYERS, WIDTH = 2, 8


def conversations(n: int = 60, seed: int = 0) -> tuple[Ragged, torch.Tensor]:
    """Prompts of 1 to 9 tokens; one token of each, at any place, is marked as such and says which class it is."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (n,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = 0.3 * torch.randn(int(offsets[-1]), LAYERS, WIDTH, generator=generator)
    marks = torch.arange(n) % 2 == 1
    place = offsets[:-1] + (torch.rand(n, generator=generator) * lengths).long()
    values[place, :, 0] += 4  # look here
    values[place, :, 1] += torch.where(marks, 1.0, -1.0)[:, None]
    distractor = offsets[:-1][lengths > 1]
    other = torch.where(distractor == place[lengths > 1], distractor + 1, distractor)
    values[other, :, 1] += 3 * torch.randn(len(other), 1, generator=generator)  # louder, and means nothing
    return Ragged(values, offsets), marks


def test_finds_the_position_that_tells() -> None:
    tokens, marks = conversations()
    probe = AttentionProbe(C=10).fit(tokens, marks)
    fresh, truth = conversations(seed=1)
    scores = probe.decision_function(fresh)
    assert scores.shape == (len(fresh), LAYERS)
    assert ((scores > 0) == truth[:, None]).double().mean() > 0.9
    shares = probe.attention(fresh)
    sums = torch.segment_reduce(shares, "sum", lengths=fresh.lengths, axis=0)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    mean = torch.stack([part.mean(dim=0) for part in fresh.values.split(fresh.lengths.tolist())])
    averaged = LogisticProbe().fit(mean, truth)
    assert ((averaged.decision_function(mean) > 0) == truth[:, None]).double().mean() < 0.85


def test_of_single_tokens_it_is_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(40, LAYERS, WIDTH)), np.arange(40) % 2
    rows[..., 0] += y[:, None]
    ours, peer = AttentionProbe(C=0.5).fit(rows, y), LogisticProbe(C=0.5).fit(rows, y)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-5)
    ragged = AttentionProbe(C=0.5).fit(one_token_each(torch.as_tensor(rows)), torch.as_tensor(y))
    np.testing.assert_allclose(ragged.coef_.numpy(), ours.coef_, atol=1e-12)


def test_pitfall_5_a_prompts_score_does_not_depend_on_its_neighbours() -> None:
    tokens, marks = conversations()
    probe = AttentionProbe().fit(tokens, marks)
    together = probe.decision_function(tokens)
    for prompt in (0, 7, 59):
        start, end = tokens.offsets[prompt], tokens.offsets[prompt + 1]
        alone = Ragged(tokens.values[start:end], torch.tensor([0, int(end - start)]))
        torch.testing.assert_close(probe.decision_function(alone)[0], together[prompt], rtol=1e-12, atol=1e-12)


def test_the_order_of_prompts_does_not_matter() -> None:
    tokens, marks = conversations()
    parts = tokens.values.split(tokens.lengths.tolist())
    turned = Ragged(
        torch.cat(parts[::-1]), torch.cat([torch.zeros(1, dtype=torch.int64), tokens.lengths.flip(0).cumsum(0)])
    )
    forth, back = AttentionProbe().fit(tokens, marks), AttentionProbe().fit(turned, marks.flip(0))
    torch.testing.assert_close(forth.decision_function(tokens), back.decision_function(tokens), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("offsets", [[0, 2, 2, 5], [1, 5], [0, 4], [0, 3, 1, 5], [0], [[0, 5]]])
def test_offsets_that_do_not_fit_are_refused(offsets) -> None:
    with pytest.raises(DefectionError, match="offsets"):
        Ragged(torch.zeros(5, 1, 2), torch.tensor(offsets))


def test_a_label_for_each_prompt_is_asked_for() -> None:
    tokens, marks = conversations()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        AttentionProbe().fit(tokens, marks[:-1])


def test_evidence_beside_tokens_is_refused_and_an_earlier_fit_is_forgotten(contrast, clean) -> None:
    tokens, marks = conversations()
    with pytest.raises(DefectionError, match="leave clean out"):
        AttentionProbe().fit(tokens, marks, clean=clean)
    probe = AttentionProbe().fit(contrast, clean=clean)
    probe.fit(tokens, marks)
    assert not {"probe_", "reference_"} & vars(probe).keys()
