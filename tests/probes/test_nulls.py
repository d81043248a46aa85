from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from defection.probes.metrics import auroc
from defection.probes.nulls import null_aurocs, null_band, null_scores, random_directions


@pytest.fixture
def noise(make_tests):
    """Residuals that know nothing of their labels."""
    return make_tests(seed=11, shift=0.0)


MARKS = [row % 2 == 1 for row in range(80)]


def test_the_band_of_noise_lies_around_one_half(noise, clean) -> None:
    for areas in null_aurocs(null_scores(noise, clean), MARKS):
        low, high = null_band(areas)
        assert low < 0.5 < high
        assert abs(float(areas.median()) - 0.5) < 0.1


def test_the_width_of_the_band_is_that_of_a_rank_statistic(make_tests, make_residuals, clean) -> None:
    """Over many draws of pure noise the AUROC of n and m scores has variance (n + m + 1) / 12nm."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(80, 4, 2000, generator=generator)
    wide = make_residuals(values, make_tests().prompts)
    reference = make_residuals(torch.randn(60, 4, 2000, generator=generator), clean.prompts)
    # In a wide space random directions are nearly orthogonal, so each gives an independent draw.
    low, high = null_band(null_aurocs(null_scores(wide, reference), MARKS).flatten())
    expected = 2 * 1.96 * sqrt((80 + 1) / (12 * 40 * 40))
    assert high - low == pytest.approx(expected, rel=0.1)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_directions_know_no_preferred_side(noise, clean) -> None:
    assert float(null_aurocs(null_scores(noise, clean), MARKS).mean()) == pytest.approx(0.5, abs=0.01)


def test_directions_differ_from_layer_to_layer_and_not_from_call_to_call() -> None:
    once, twice = random_directions(3, 8, count=5), random_directions(3, 8, count=5)
    assert torch.equal(once, twice)
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(once, random_directions(3, 8, count=5, seed=1))


def test_directions_are_isotropic() -> None:
    directions = random_directions(1, 6, count=20_000)[0]
    covariance = directions.T @ directions / 20_000
    assert torch.allclose(covariance, torch.eye(6), atol=0.05)


def test_scores_are_standardised_on_clean_prompts(clean) -> None:
    scores = null_scores(clean, clean, count=20)
    assert torch.allclose(scores.mean(dim=-1), torch.zeros(4, 20), atol=1e-4)
    assert torch.allclose(scores.std(dim=-1), torch.ones(4, 20), atol=1e-4)


def test_the_band_over_layers_is_that_of_the_mean_score(noise, clean) -> None:
    scores = null_scores(noise, clean, count=30)
    together = null_aurocs(scores, MARKS, [1, 3])
    assert torch.equal(together, auroc((scores[1] + scores[3]) / 2, MARKS))


def test_the_band_holds_95_percent(noise, clean) -> None:
    areas = null_aurocs(null_scores(noise, clean), MARKS)[0]
    low, high = null_band(areas)
    assert ((areas >= low) & (areas <= high)).double().mean() == pytest.approx(0.95, abs=0.005)


def test_pitfall_16_a_layer_without_variance_does_not_drown_the_others(noise, clean) -> None:
    flat_clean, flat_noise = clean.values.clone(), noise.values.clone()
    flat_clean[:, 0] = flat_noise[:, 0] = torch.linspace(-3, 3, 12).sin() * 7
    scores = null_scores(replace(noise, values=flat_noise), replace(clean, values=flat_clean), count=200)
    assert scores.isfinite().all()
    assert scores[0].abs().max() < 1e-3
    assert torch.equal(scores[1:], null_scores(noise, clean, count=200)[1:])
