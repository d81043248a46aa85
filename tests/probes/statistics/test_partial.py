from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes.statistics.intervals import delong_interval
from defection.probes.statistics.metrics import partial_auroc
from defection.probes.statistics.partial import partial_auroc_interval
from scipy.integrate import quad
from scipy.stats import norm


def drawn(shift: float, draws: int, n: int = 200, size: int = 1, shared: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Normal scores, every other one positive; prompts of a topic of `size` have `shared` of their variance alike."""
    rng = np.random.default_rng(0)
    marks = np.arange(n) % 2 == 0
    common = np.repeat(rng.normal(size=(draws, n // size)), size, axis=1) * np.sqrt(shared)
    scores = common + rng.normal(size=(draws, n)) * np.sqrt(1 - shared) + shift * marks
    return torch.from_numpy(scores), torch.from_numpy(marks), [str(i // size) for i in range(n)]


@pytest.mark.parametrize("max_fpr", [0.1, 0.5, 1.0])
def test_the_interval_holds_the_estimate_and_turns_into_the_whole_areas(max_fpr: float) -> None:
    scores, marks, names = drawn(1.5, 5, size=4)
    low, high = partial_auroc_interval(scores, marks, max_fpr, names)
    found = partial_auroc(scores, marks, max_fpr)
    assert ((low < found) & (found < high)).all()
    if max_fpr == 1:
        for ours, delongs in zip((low, high), delong_interval(scores, marks, names), strict=True):
            assert torch.allclose(ours, delongs, atol=0.01)


def test_batched_equals_single_and_perfection_leaves_an_interval() -> None:
    scores, marks, names = drawn(1.5, 3, size=4)
    low, high = partial_auroc_interval(scores, marks, 0.1, names)
    for row in range(3):
        single = partial_auroc_interval(scores[row], marks, 0.1, names)
        assert (float(low[row]), float(high[row])) == pytest.approx([float(x) for x in single])
    low, high = partial_auroc_interval(scores[0] + 100 * marks, marks, 0.1, names)
    assert float(high) == 1.0
    assert 0.5 < float(low) < 0.95


def standardised_area(shift: float, max_fpr: float) -> float:
    """The partial AUROC of two unit normals, by quadrature."""
    area, _ = quad(lambda rate: norm.cdf(shift + norm.ppf(rate)), 0, max_fpr)
    least = max_fpr**2 / 2
    return 0.5 * (1 + (area - least) / (max_fpr - least))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "size"), [(100, 1), (200, 10), (200, 4)])
@pytest.mark.parametrize("area", [0.7, 0.9, 0.98])
@pytest.mark.parametrize("max_fpr", [0.1, 0.2])
def test_pitfall_23_coverage(n: int, size: int, area: float, max_fpr: float) -> None:
    """Never too rare; above 97% where much of the left end is unseen."""
    shift = float(np.sqrt(2) * norm.ppf(area))
    scores, marks, names = drawn(shift, 2000, n, size, shared=0.3 if size > 1 else 0.0)
    low, high = partial_auroc_interval(scores, marks, max_fpr, names if size > 1 else None)
    truth = standardised_area(shift, max_fpr)
    assert 0.92 <= float(((low <= truth) & (truth <= high)).double().mean()) <= 0.998


def test_bad_input_is_refused() -> None:
    marks = [True, False, True, False]
    with pytest.raises(DefectionError, match="two topics"):
        partial_auroc_interval(torch.arange(4.0), marks, 0.1, ["a", "b", "a", "b"])
    with pytest.raises(DefectionError, match="1 cluster names do not fit 4 labels"):
        partial_auroc_interval(torch.arange(4.0), marks, 0.1, ["a"])
