"""Steps between layers, held against those of clean prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import LayerConvergence
from sklearn.covariance import LedoitWolf

CLEAN, LAYERS, WIDTH = 120, 5, 24


@pytest.fixture
def clean() -> torch.Tensor:
    """Rows that wander from layer to layer, farther in some dimensions than in others."""
    draw = torch.Generator().manual_seed(0)
    scale = torch.rand(LAYERS, WIDTH, generator=draw) + 0.1
    return (torch.randn(CLEAN, LAYERS, WIDTH, generator=draw) * scale).cumsum(dim=1)


@pytest.fixture
def new(clean: torch.Tensor) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return clean[:40] + torch.randn(40, LAYERS, WIDTH, generator=draw)


def test_scores_are_the_papers(clean: torch.Tensor, new: torch.Tensor) -> None:
    """Diagonal distances a step, then one distance of them all with Ledoit and Wolf's covariance."""

    def distances(rows: torch.Tensor) -> np.ndarray:
        moved, known = np.diff(rows.numpy(), axis=1), np.diff(clean.numpy(), axis=1)
        return np.sqrt((((moved - known.mean(0)) / known.std(0, ddof=1)) ** 2).mean(axis=2))

    expected = np.sqrt(LedoitWolf().fit(distances(clean)).mahalanobis(distances(new)))
    found = LayerConvergence().fit(clean).decision_function(new)
    assert found.shape == (40, LAYERS)
    np.testing.assert_allclose(found, np.repeat(expected[:, None], LAYERS, axis=1), rtol=1e-4)


def test_what_is_the_same_at_all_layers_is_no_step(clean: torch.Tensor, new: torch.Tensor) -> None:
    fitted = LayerConvergence().fit(clean)
    moved = new + 100 * torch.randn(40, 1, WIDTH)
    torch.testing.assert_close(fitted.decision_function(moved), fitted.decision_function(new), rtol=1e-3, atol=1e-3)


def test_units_of_a_dimension_do_not_matter(clean: torch.Tensor, new: torch.Tensor) -> None:
    unit = torch.logspace(-2, 2, WIDTH)
    plain = LayerConvergence().fit(clean).decision_function(new)
    torch.testing.assert_close(
        LayerConvergence().fit(clean * unit).decision_function(new * unit), plain, rtol=1e-3, atol=1e-3
    )


def test_one_unusual_step_is_seen(clean: torch.Tensor) -> None:
    draw = torch.Generator().manual_seed(2)
    fitted = LayerConvergence().fit(clean)
    quiet = clean[torch.randperm(CLEAN, generator=draw)[:50]]
    odd = quiet.clone()
    odd[:, 3:] += 3  # a step that no clean prompt makes, kept afterwards
    assert fitted.decision_function(odd).min() > fitted.decision_function(quiet).quantile(0.9)


def test_a_dimension_that_never_moves_has_no_say(clean: torch.Tensor, new: torch.Tensor) -> None:
    """PITFALLS 16."""
    still = torch.cat([clean, torch.ones(CLEAN, LAYERS, 1)], dim=2)
    tested = torch.cat([new, torch.ones(40, LAYERS, 1)], dim=2)
    scores = LayerConvergence().fit(still).decision_function(tested)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize(("rows", "why"), [(torch.randn(9, 1, 4), "two layers"), (torch.randn(2, 3, 4), "too few")])
def test_what_cannot_be_fitted_is_refused(rows: torch.Tensor, why: str) -> None:
    with pytest.raises(DefectionError, match=why):
        LayerConvergence().fit(rows)
