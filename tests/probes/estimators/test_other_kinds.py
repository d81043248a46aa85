"""What the kinds without an equivalent in scikit-learn are for: each finds what it promises to find."""

from __future__ import annotations

import numpy as np
import pytest
from defection.activations import DefectionError
from defection.probes import (
    ContrastConsistentSearch,
    FirstComponent,
    LayerEnsemble,
    LogisticProbe,
    Mahalanobis,
    MLPProbe,
    PairPCAProbe,
    QuestionEnsemble,
)


def answered(n: int = 60, d: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    """Pairs of answers; the word is dimension 0, the truth dimension 1, and which word is true varies."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(n) % 2 == 0  # whether the first word is the defecting answer
    rows = 0.3 * np.repeat(rng.normal(size=(n, 1, d)), 2, axis=0) + 0.3 * rng.normal(size=(2 * n, 1, d))
    word = np.tile([1.0, -1.0], n)
    y = (np.repeat(truth, 2) == (word > 0)).astype(int)
    rows[:, 0, 0] += 5 * word
    rows[:, 0, 1] += 2 * y - 1
    return {"X": rows, "y": y, "pairs": np.arange(2 * n).reshape(-1, 2)}


def test_contrast_consistent_search_finds_the_truth_and_not_the_word() -> None:
    probe = ContrastConsistentSearch().fit(**answered())
    direction = np.abs(probe.coef_[0]) / np.linalg.norm(probe.coef_[0])
    assert direction.argmax() == 1
    fresh = answered(seed=1)
    centred = fresh["X"] - np.array([5.0 if i % 2 == 0 else -5.0 for i in range(120)])[:, None, None] * np.eye(20)[0]
    assert ((probe.decision_function(centred)[:, 0] > 0) == fresh["y"]).mean() > 0.9


def test_pair_components_read_the_word_when_it_is_the_loudest_difference() -> None:
    """Why the set is balanced and CCS centres each side: plain PCA of differences takes what varies most."""
    probe = PairPCAProbe().fit(**answered())
    assert np.abs(probe.coef_[0]).argmax() == 0


@pytest.mark.parametrize("kind", [ContrastConsistentSearch(), PairPCAProbe()], ids=lambda kind: kind.name)
def test_pairs_are_asked_for_and_checked(kind) -> None:
    data = answered()
    with pytest.raises(DefectionError, match="needs pairs"):
        kind.fit(data["X"], data["y"])
    with pytest.raises(DefectionError, match="row numbers below 120"):
        kind.fit(data["X"], data["y"], pairs=data["pairs"] + 1)


def test_the_network_tells_apart_what_no_hyperplane_can() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 5))
    y = (rows[:, 0] * rows[:, 1] > 0).astype(int)
    network, plane = MLPProbe(penalty=1e-3).fit(rows, y), LogisticProbe().fit(rows, y)
    fresh = rng.normal(size=(400, 5))
    truth = (fresh[:, 0] * fresh[:, 1] > 0).astype(int)
    assert network.score(fresh, truth) > 0.85
    assert plane.score(fresh, truth) < 0.65
    assert network.converged_.all()


def test_far_rows_are_far() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(200, 10)) * np.linspace(1, 5, 10)
    monitor = Mahalanobis().fit(clean)
    along, across = np.eye(10)[9] * 8, np.eye(10)[0] * 8  # the same length, where clean rows vary much and little
    scores = monitor.decision_function(np.stack([np.zeros(10), along, across]))
    assert scores[0] < scores[1] < scores[2]
    fresh = rng.normal(size=(4000, 10)) * np.linspace(1, 5, 10)
    assert 0 < monitor.predict(fresh).mean() < 0.03


@pytest.mark.parametrize("side", [1, -1])
def test_the_first_component_of_traffic_points_to_the_few(side) -> None:
    rng = np.random.default_rng(0)
    clean, traffic = rng.normal(size=(100, 1, 10)), rng.normal(size=(100, 1, 10))
    traffic[:15, 0, 3] += side * 12
    monitor = FirstComponent().fit(clean, traffic=traffic)
    scores = monitor.decision_function(traffic)[:, 0]
    assert scores[:15].min() > scores[15:].max()


def test_a_question_with_one_kind_of_answer_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DefectionError, match="answers of one class only"):
        QuestionEnsemble().fit(rng.normal(size=(6, 4)), [0, 1, 0, 1, 1, 1], groups=[0, 0, 1, 1, 2, 2])
    with pytest.raises(DefectionError, match="needs groups"):
        QuestionEnsemble().fit(rng.normal(size=(6, 4)), [0, 1, 0, 1, 1, 1])


def test_a_band_outside_the_rows_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DefectionError, match=r"no band \(1, 4\) in rows of 3 layers"):
        LayerEnsemble(layers=(1, 4)).fit(rng.normal(size=(6, 3, 4)), [0, 1] * 3)


def test_a_band_on_residuals_belongs_to_the_probe(contrast) -> None:
    with pytest.raises(DefectionError, match="fixed_layers"):
        LayerEnsemble().fit(contrast)
