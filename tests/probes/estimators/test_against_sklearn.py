"""Every kind with an equivalent in scikit-learn, equal to it layer by layer in fp64, and in fp32 after polishing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.probes import LogisticProbe, LogisticProbeCV, Mahalanobis, PairPCAProbe, PCAProbe, RidgeProbe, Whitened
from defection.probes.estimators.solving.covariance import shrinkage_of
from defection.probes.estimators.solving.products import solve_products
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf, ledoit_wolf_shrinkage, oas
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier
from sklearn.model_selection import GroupKFold

SHAPES = [(30, 80), (80, 30), (6, 4), (12, 12)]
LAYERS = 3
each_shape = pytest.mark.parametrize(("n", "d"), SHAPES)


def made(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    rows = rng.normal(size=(n, LAYERS, d)) * np.exp(0.5 * rng.normal(size=d)) + rng.normal(size=d)
    rows[..., 0] += y[:, None]
    return rows, y


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@each_shape
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_logistic_regression(n, d, C) -> None:
    rows, y = made(n, d)
    probe = LogisticProbe(C).fit(rows, y)
    for layer in range(LAYERS):
        peer = LogisticRegression(C=C, tol=1e-10, max_iter=50_000, solver="newton-cg").fit(rows[:, layer], y)
        close(probe.coef_[layer], peer.coef_[0], 1e-4)
        assert probe.intercept_[layer] == pytest.approx(peer.intercept_[0], abs=1e-3)


@each_shape
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e4])
def test_logistic_regressions_gradient_vanishes(n, d, C) -> None:
    """Sharper than any comparison: w = C Σ (tᵢ − pᵢ) xᵢ and Σ (tᵢ − pᵢ) = 0."""
    rows, y = made(n, d)
    probe = LogisticProbe(C).fit(rows, y)
    pull = C * (y[:, None] - 1 / (1 + np.exp(-probe.decision_function(rows))))
    expected = np.einsum("nl,nld->ld", pull, rows)
    np.testing.assert_allclose(probe.coef_, expected, atol=1e-5 * np.abs(probe.coef_).max())
    assert np.abs(pull.sum(axis=0)).max() < 1e-5 * np.abs(pull).sum()


def test_pitfall_17_separable_data_at_a_vanishing_penalty_converge() -> None:
    rows, y = made(12, 40)
    rows[..., 0] += 1000 * y[:, None]
    probe = LogisticProbe(C=1e8).fit(rows, y)
    assert np.isfinite(probe.coef_).all()
    assert ((probe.decision_function(rows) > 0) == (y[:, None] == 1)).all()


@each_shape
def test_cross_validation_by_topic(n, d) -> None:
    rows, y = made(n, d)
    groups, Cs = np.arange(n) // 2, (1e-4, 1e-2, 1.0)
    probe = LogisticProbeCV(Cs=Cs, folds=3).fit(rows, y, groups=groups)
    folds = list(GroupKFold(3).split(rows, y, groups))
    for layer in range(LAYERS):
        peer = LogisticRegressionCV(
            Cs=list(Cs), cv=folds, scoring="neg_log_loss", tol=1e-10, max_iter=50_000, use_legacy_attributes=False
        ).fit(rows[:, layer], y)
        assert probe.C_[layer] == peer.C_
        close(probe.coef_[layer], peer.coef_[0], 1e-4)


def test_pitfall_23_rows_of_one_topic_never_stand_on_both_sides() -> None:
    """Every row twice, each copy in the same topic: with the copies split, the strongest fit would look best."""
    rng = np.random.default_rng(0)
    rows, y = np.repeat(rng.normal(size=(20, 1, 60)), 2, axis=0), np.repeat(np.arange(20) % 2, 2)
    by_topic = LogisticProbeCV(folds=5).fit(rows, y, groups=np.repeat(np.arange(20), 2))
    split = LogisticProbeCV(folds=5).fit(rows, y, groups=np.tile([0, 1], 20) + 2 * np.repeat(np.arange(20), 2) % 7)
    assert by_topic.C_[0] < split.C_[0]


@each_shape
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_ridge(n, d, alpha) -> None:
    rows, y = made(n, d)
    probe = RidgeProbe(alpha).fit(rows, y)
    for layer in range(LAYERS):
        peer = RidgeClassifier(alpha=alpha).fit(rows[:, layer], y)
        close(probe.coef_[layer], peer.coef_.ravel(), 1e-9)
        assert probe.intercept_[layer] == pytest.approx(np.ravel(peer.intercept_)[0], abs=1e-9)


@each_shape
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", "oas", 0.3])
def test_linear_discriminant_analysis(n, d, solver, shrinkage) -> None:
    rows, y = made(n, d)
    y[: n // 3] = 0  # unequal classes
    rules = {"ledoit-wolf": LedoitWolf(), "oas": OAS()}
    how = {"covariance_estimator": rules[shrinkage]} if shrinkage in rules else {"shrinkage": shrinkage}
    probe = Whitened(shrinkage, covariance="pooled").fit(rows, y)
    for layer in range(LAYERS):
        if solver == "eigen" and shrinkage in rules:
            continue  # scikit-learn's eigen solver shrinks the total covariance by a rule of its own
        peer = LinearDiscriminantAnalysis(solver=solver, **how).fit(rows[:, layer], y)
        ours, theirs = probe.coef_[layer], peer.coef_[0]
        if solver == "eigen":  # the same hyperplane; scikit-learn scales it by the between-class variance
            ours, theirs = ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs)
        else:
            assert probe.intercept_[layer] == pytest.approx(peer.intercept_[0], rel=1e-6, abs=1e-6)
        close(ours, theirs, 1e-6)


@settings(max_examples=30)
@given(n=st.integers(2, 40), d=st.integers(1, 40), seed=st.integers(0, 999), ties=st.booleans())
def test_shrinkage_rules(n, d, seed, ties) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, size=(n, d)).astype(float) if ties else rng.normal(size=(n, d))
    rows -= rows.mean(axis=0)
    if np.abs(rows).max() < 1e-9:
        return
    stack = torch.as_tensor(rows)[None]
    ours = float(shrinkage_of(stack, "ledoit-wolf"))
    if d > 1:  # of a single dimension there is nothing to shrink
        assert ours == pytest.approx(ledoit_wolf_shrinkage(rows, assume_centered=True), abs=1e-6)
        assert float(shrinkage_of(stack, "oas")) == pytest.approx(oas(rows, assume_centered=True)[1], abs=1e-9)


@each_shape
def test_principal_components(n, d) -> None:
    rows, y = made(n, d)
    probe = PCAProbe().fit(rows, y)
    pairs = np.arange(n).reshape(-1, 2)
    paired = PairPCAProbe().fit(rows, y, pairs=pairs)
    for layer in range(LAYERS):
        first = PCA(1, svd_solver="full").fit(rows[:, layer]).components_[0]
        assert abs(first @ probe.coef_[layer]) == pytest.approx(1, abs=1e-9)
        gaps = rows[0::2, layer] - rows[1::2, layer]
        first = PCA(1, svd_solver="full").fit(np.concatenate([gaps, -gaps])).components_[0]
        assert abs(first @ paired.coef_[layer]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("n", [30, 300])
def test_mahalanobis_distance(n) -> None:
    rows, _ = made(n, 50)
    monitor = Mahalanobis().fit(rows)
    other = made(10, 50, seed=1)[0]
    for layer in range(LAYERS):
        expected = np.sqrt(LedoitWolf().fit(rows[:, layer]).mahalanobis(other[:, layer]))
        np.testing.assert_allclose(monitor.decision_function(other)[:, layer], expected, rtol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(200, 300), (500, 150)])
@pytest.mark.parametrize(
    "probe",
    [LogisticProbe(), LogisticProbe(1e3), RidgeProbe(), RidgeProbe(1e-6), Whitened(covariance="pooled"), PCAProbe()],
    ids=str,
)
def test_fp32_rows_give_the_fp64_solution(probe, n, d) -> None:
    """Products are taken in fp32 there; what comes out must not show it."""
    rows, y = made(n, d)
    rows = (rows * np.exp(np.random.default_rng(1).normal(size=d))).astype(np.float32)
    rough = probe.fit(rows, y).coef_
    exact = probe.fit(rows.astype(np.float64), y).coef_
    close(rough, exact, 1e-5)


def test_a_system_too_ill_conditioned_for_fp32_is_solved_in_fp64() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 200, 300, generator=generator, dtype=torch.float64)
    rows[..., 0] *= 1e4  # a massive dimension
    right = torch.randn(1, 200, 1, generator=generator, dtype=torch.float64)
    ridge = torch.full((1,), 1e-2, dtype=torch.float64)
    solution = solve_products(rows, ridge, right, coarse=True)
    image = rows @ (rows.mT @ solution) + ridge * solution
    assert (image - right).norm() < 1e-6 * right.norm()
