from __future__ import annotations

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import MeanDifference
from defection.probes.statistics.metrics import (
    auroc,
    bootstrap_aurocs,
    clopper_pearson,
    partial_auroc,
    salience,
    tpr_at_fpr,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import roc_auc_score


def scored(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[list[float], list[bool]]]:
    pairs = st.lists(st.tuples(values, st.booleans()), min_size=2, max_size=60)
    both = pairs.filter(lambda rows: len({mark for _, mark in rows}) == 2)
    return both.map(lambda rows: ([value for value, _ in rows], [mark for _, mark in rows]))


TIED = scored(st.integers(-3, 3).map(float))
SPREAD = scored(st.floats(-1e6, 1e6, allow_nan=False))


@given(st.one_of(TIED, SPREAD))
def test_pitfall_18_auroc_counts_ties_as_sklearn_does(sample: tuple[list[float], list[bool]]) -> None:
    scores, marks = sample
    assert float(auroc(torch.tensor(scores, dtype=torch.float64), marks)) == pytest.approx(
        roc_auc_score(marks, scores), abs=1e-12
    )


def test_pitfall_18_all_tied_is_exactly_one_half_in_any_row_order() -> None:
    for marks in ([True, False, False], [False, False, True]):
        assert float(auroc(torch.zeros(3), marks)) == 0.5


def test_pitfall_18_batched_auroc_equals_single() -> None:
    scores = torch.randint(-3, 4, (3, 5, 40), generator=torch.Generator().manual_seed(0)).float()
    marks = [row % 3 == 0 for row in range(40)]
    single = torch.stack([torch.stack([auroc(row, marks) for row in rows]) for rows in scores])
    assert torch.equal(auroc(scores, marks), single)


@pytest.mark.parametrize("marks", [[True] * 3, [False] * 3])
@pytest.mark.parametrize("metric", [auroc, tpr_at_fpr, salience, lambda s, m: partial_auroc(s, m, 0.1)])
def test_pitfall_18_a_single_class_is_refused(metric, marks: list[bool]) -> None:
    with pytest.raises(DefectionError, match="both outcomes"):
        metric(torch.arange(3.0), marks)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("metric", [auroc, tpr_at_fpr, salience, lambda s, m: partial_auroc(s, m, 0.1)])
def test_pitfall_18_a_score_that_is_not_finite_is_refused(metric, bad: float) -> None:
    with pytest.raises(DefectionError, match="not finite"):
        metric(torch.tensor([0.0, bad, 1.0]), [True, False, True])


def test_as_many_labels_as_scores_are_needed() -> None:
    with pytest.raises(DefectionError, match="3 scores do not fit 2 labels"):
        auroc(torch.arange(3.0), [True, False])


@given(TIED)
def test_pitfall_20_auroc_is_signed(sample: tuple[list[float], list[bool]]) -> None:
    scores, marks = torch.tensor(sample[0]), sample[1]
    assert float(auroc(-scores, marks)) == pytest.approx(1 - float(auroc(scores, marks)), abs=1e-12)


def best_rate_within(scores: list[float], marks: list[bool], target: float) -> float:
    """Brute force: try every threshold, keep those that flag few enough negatives."""
    values, positives = np.array(scores), np.array(marks)
    best = 0.0
    for threshold in [*values, -np.inf]:
        flagged = values > threshold
        if flagged[~positives].mean() <= target:
            best = max(best, flagged[positives].mean())
    return best


@given(st.one_of(TIED, SPREAD), st.one_of(st.sampled_from([0.01, 0.1, 0.25, 0.5]), st.floats(0, 1)))
def test_pitfall_19_tpr_at_fpr_never_overshoots_and_is_the_best_that_does_not(
    sample: tuple[list[float], list[bool]], target: float
) -> None:
    scores, marks = sample
    # The share of the negatives a target allows is computed with a hair's tolerance, or 0.1 of 30 would be 2.
    found = float(tpr_at_fpr(torch.tensor(scores, dtype=torch.float64), marks, target))
    assert found == pytest.approx(best_rate_within(scores, marks, target + 1e-10), abs=1e-12)


def test_pitfall_19_tied_negatives_at_the_threshold_are_not_let_through() -> None:
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0])
    assert float(tpr_at_fpr(scores, [False, False, False, True, True], 0.5)) == 0.5


def test_batched_tpr_equals_single() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    marks = [row % 2 == 0 for row in range(50)]
    assert torch.equal(tpr_at_fpr(scores, marks, 0.1), torch.stack([tpr_at_fpr(row, marks, 0.1) for row in scores]))


def clustered(seed: int, topics: int = 12, size: int = 6) -> tuple[torch.Tensor, list[bool], list[str]]:
    """Scores that share a part within a topic, as prompts about one subject do."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(size=topics), size)
    marks = np.tile([True, False], topics * size // 2)
    scores = shared + 0.5 * rng.normal(size=topics * size) + marks
    return torch.from_numpy(scores), marks.tolist(), [f"topic-{i // size}" for i in range(topics * size)]


@settings(max_examples=50)
@given(st.integers(1, 200), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_clopper_pearson_equals_scipys_exact_interval(n: int, data: st.DataObject, level: float) -> None:
    successes = data.draw(st.integers(0, n))
    theirs = binomtest(successes, n).proportion_ci(level, method="exact")
    assert clopper_pearson(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(SPREAD, st.floats(0.01, 100), st.floats(-100, 100))
def test_salience_depends_on_neither_scale_nor_offset(
    sample: tuple[list[float], list[bool]], scale: float, offset: float
) -> None:
    scores = torch.tensor(sample[0], dtype=torch.float64).round(decimals=2) / 100
    before, after = salience(scores, sample[1]), salience(scores * scale + offset, sample[1])
    if scores.std() > 1e-3 and 1e-6 < before < 1e12:  # beyond, the variance within is rounding
        assert float(after) == pytest.approx(float(before), rel=1e-3)


def test_salience_of_known_classes() -> None:
    assert float(salience(torch.tensor([3.0, 5.0, -1.0, 1.0]), [True, True, False, False])) == pytest.approx(4.0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 / 3])
def test_pitfall_16_scores_that_do_not_vary_have_no_salience(value: float) -> None:
    marks = [True, True, True, False, False, False, False]
    assert float(salience(torch.full((7,), value, dtype=torch.float64), marks)) == 0.0


@given(st.one_of(TIED, SPREAD), st.one_of(st.sampled_from([0.01, 0.1, 0.5, 1.0]), st.floats(1e-3, 1)))
def test_partial_auroc_equals_sklearns(sample: tuple[list[float], list[bool]], max_fpr: float) -> None:
    scores, marks = sample
    found = float(partial_auroc(torch.tensor(scores, dtype=torch.float64), marks, max_fpr))
    assert found == pytest.approx(roc_auc_score(marks, scores, max_fpr=max_fpr), abs=1e-9)


def test_batched_partial_auroc_equals_single_and_is_the_auroc_at_1() -> None:
    scores = torch.randint(-9, 9, (3, 4, 50), generator=torch.Generator().manual_seed(1)).float()
    marks = [row % 3 == 0 for row in range(50)]
    single = torch.stack([torch.stack([partial_auroc(row, marks, 0.1) for row in rows]) for rows in scores])
    assert torch.equal(partial_auroc(scores, marks, 0.1), single)
    assert torch.allclose(partial_auroc(scores, marks, 1.0), auroc(scores, marks), atol=1e-12)


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1])
def test_a_partial_area_of_no_or_too_much_width_is_refused(max_fpr: float) -> None:
    with pytest.raises(DefectionError, match="max_fpr"):
        partial_auroc(torch.arange(3.0), [True, False, True], max_fpr)


def test_pitfall_23_each_bootstrap_draw_is_sklearns_auroc_of_the_prompts_drawn() -> None:
    """The draws are those of the documented generator, so that they can be rebuilt prompt by prompt."""
    scores, marks, topics = clustered(3)
    scores = torch.stack([scores, scores.round()])
    names, member = np.unique(topics, return_inverse=True)
    counts = np.random.default_rng(5).multinomial(len(names), np.full(len(names), 1 / len(names)), size=20)
    found = bootstrap_aurocs(scores, marks, topics, draws=20, seed=5)
    for draw, count in enumerate(counts):
        rows = np.repeat(np.arange(len(marks)), count[member])
        for column in range(2):
            expected = roc_auc_score(np.array(marks)[rows], scores[column].numpy()[rows])
            assert float(found[column, draw]) == pytest.approx(expected, abs=1e-12)


def test_cluster_names_must_fit_the_labels() -> None:
    with pytest.raises(DefectionError, match="2 cluster names do not fit 3 labels"):
        bootstrap_aurocs(torch.arange(3.0), [True, False, True], ["a", "b"])


@pytest.mark.parametrize("n", [10, 40, 100])
def test_clopper_pearson_covers_at_least_its_level_at_every_rate(n: int) -> None:
    """Exactly, by summing over outcomes: it is conservative by design, so 97% is no upper bound here."""
    bounds = np.array([clopper_pearson(k, n) for k in range(n + 1)])
    for rate in np.linspace(0, 1, 101):
        inside = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
        assert binom.pmf(np.arange(n + 1), n, rate)[inside].sum() >= 0.95 - 1e-12


def test_pitfall_19_the_tprs_interval_covers_the_rate_at_the_threshold_that_was_set() -> None:
    rng, hits, draws = np.random.default_rng(0), 0, 2000
    marks = np.repeat([True, False], [60, 100])
    for scores in rng.normal(size=(draws, 160)) + 2 * marks:
        rate = float(tpr_at_fpr(torch.from_numpy(scores), marks, 0.01))
        threshold = np.sort(scores[~marks])[-2]
        low, high = clopper_pearson(round(rate * 60), 60)
        hits += low <= norm.sf(threshold - 2) <= high
    assert 0.95 <= hits / draws <= 0.99


def test_auroc_takes_what_decision_function_returns() -> None:
    """Rows first, as scikit-learn has them; where that could mean two things, it has to be said."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(30, 4, 6)), np.arange(30) % 2
    scores = MeanDifference().fit(rows, labels).decision_function(rows)
    expected = [roc_auc_score(labels, scores[:, layer]) for layer in range(4)]
    for form in (scores, torch.from_numpy(scores), scores.T, scores.tolist()):
        assert auroc(form, labels).tolist() == pytest.approx(expected)
    assert float(auroc(scores[:, 0].tolist(), labels.tolist())) == pytest.approx(expected[0])
    square = np.concatenate([scores] * 8, axis=1)[:, :30]
    with pytest.raises(DefectionError, match="axis=0"):
        auroc(square, labels)
    assert auroc(square, labels, axis=0)[:4].tolist() == pytest.approx(expected)
