"""A sweep of one's own rows: what is held out is held out, what is nothing is called nothing, and it draws itself."""

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, ModelIdentity, Residuals, user_prompt
from defection.probes import MeanDifference, RidgeProbe, auroc, sweep_layers
from defection.probes.evidence.layer_sweep import LabelledRows, held_out_scores
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def planted(n: int = 80, layers: int = 4, d: int = 12, where: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, marks = rng.normal(size=(n, layers, d)), np.arange(n) % 2
    rows[marks == 1, where, 0] += 2.5
    return rows, marks


def test_it_finds_the_layer_that_knows_and_only_that_one() -> None:
    rows, marks = planted()
    table = sweep_layers(rows, marks, groups=np.arange(80) // 4, draws=99)
    assert [row.layer for row in table] == [0, 1, 2, 3]
    assert table.best.layer == 2
    assert table.best.p_best_layer == pytest.approx(0.01)
    assert table.best.auroc > table.best.null_high
    assert table.best.auroc_low > 0.8
    assert all(row.p_label_shuffle > 0.05 for row in table if row.layer != 2)
    torch.testing.assert_close(auroc(table.scores, marks), torch.tensor([row.auroc for row in table]).double())


class Remembers(ClassifierMixin, BaseEstimator):
    """Scores a row it was fitted on as its label says, and knows nothing of any other."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Remembers":
        self.classes_ = np.unique(y)
        self.known_ = {row.tobytes(): bool(mark) for row, mark in zip(X, y, strict=True)}
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return np.array([2.0 * self.known_[row.tobytes()] - 1 if row.tobytes() in self.known_ else 0.0 for row in X])


def test_no_figure_comes_from_a_row_or_a_group_that_the_fit_saw() -> None:
    rows, marks = planted()
    groups = np.arange(80) // 2
    rows = rows[groups]  # the two rows of a group are the same vector with different labels
    table = sweep_layers(rows, marks, groups=groups, probe=Remembers(), draws=0)
    assert [row.auroc for row in table] == [0.5] * 4


def test_labels_that_mean_nothing_have_p_values_that_say_so() -> None:
    """The p-value of the best of three layers is uniform: of 60 nulls some 3 lie at or below 0.05, 9 are too many."""
    low = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows, marks = rng.normal(size=(24, 3, 6)), rng.permutation(np.arange(24) % 2)
        low += sweep_layers(rows, marks, draws=19, folds=3).best.p_best_layer <= 0.05
    assert low <= 8


def test_shuffles_keep_groups_of_one_label_whole() -> None:
    marks = np.repeat([True, False], 12)
    pure = LabelledRows(torch.zeros(24, 1, 2), (0,), marks, tuple("abcdef"[i // 4] for i in range(24)))
    for drawn in pure.dealt(20, seed=0):
        assert all(len(set(drawn[i : i + 4])) == 1 for i in range(0, 24, 4))
    mixed = LabelledRows(torch.zeros(24, 1, 2), (0,), marks[::-1].copy(), tuple("ab"[i % 2] for i in range(24)))
    for drawn in mixed.dealt(20, seed=0):
        assert drawn[::2].sum() == drawn[1::2].sum() == 6


def test_scores_of_several_folds_stand_on_one_scale() -> None:
    """A fold whose fit has steeper scores would otherwise outrank the others by its steepness alone."""
    rows, marks = planted(n=60)
    known = LabelledRows(torch.from_numpy(rows), (0, 1, 2, 3), marks == 1, tuple(map(str, range(60))))
    scores = held_out_scores(known, known.marks, MeanDifference(), 5)
    scaled = LabelledRows(known.values * 1000, known.layers, known.marks, known.topics)
    torch.testing.assert_close(scores, held_out_scores(scaled, known.marks, MeanDifference(), 5))


def test_arrays_tensors_residuals_and_one_layer_agree() -> None:
    rows, marks = planted()
    groups = [f"g{i // 4}" for i in range(80)]
    expected = sweep_layers(rows, marks, groups=groups, layers=(3, 4, 5, 6), draws=0)
    prompts = tuple(user_prompt("?", id=str(i), topic=group) for i, group in enumerate(groups))
    read = Residuals(torch.from_numpy(rows), (3, 4, 5, 6), prompts, (1,) * 80, ModelIdentity("m", "f", "t"))
    for X, how in ((torch.from_numpy(rows), {"groups": groups, "layers": (3, 4, 5, 6)}), (read, {})):
        assert repr(list(sweep_layers(X, marks, draws=0, **how))) == repr(list(expected))
    (single,) = sweep_layers(rows[:, 2], marks, groups=groups, draws=0)
    assert single.auroc == expected[2].auroc


@pytest.mark.parametrize(
    "probe", ["ridge", RidgeProbe(), make_pipeline(StandardScaler(), LogisticRegression()), "whitened"], ids=str
)
def test_probes_by_name_by_kind_and_from_scikit_learn(probe: object) -> None:
    rows, marks = planted()
    assert sweep_layers(rows, marks, probe=probe, clean=rows[marks == 0], draws=0).best.layer == 2


def test_it_draws_itself_and_goes_to_pandas() -> None:
    rows, marks = planted()
    table = sweep_layers(rows, marks, draws=9)
    ax = table.plot()
    assert "p = 0.1" in ax.get_title()
    assert len(ax.lines[-2].get_xdata()) == 4
    assert table.plot(ax) is ax
    frame = table.to_pandas()
    assert frame.layer.tolist() == [0, 1, 2, 3]
    assert frame.auroc.idxmax() == 2
    assert len(repr(table)) < 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"X": np.zeros((4, 2, 2, 2))}, "shape"),
        ({"X": np.full((8, 2, 3), np.nan)}, "NaN"),
        ({"y": [0, 1, 2, 3, 0, 1, 2, 3]}, "binary"),
        ({"y": [0] * 8}, "both kinds"),
        ({"groups": [0, 1]}, "group"),
        ({"groups": [0, 0, 0, 0, 1, 1, 1, 1], "y": [0] * 4 + [1] * 4}, "two topics"),
        ({"layers": (1, 2, 3)}, "layer"),
        ({"folds": 1}, "folds"),
        ({"probe": "no such"}, "unknown probe"),
        ({"probe": 3}, "no probe"),
        ({"probe": "layer-ensemble"}, "unknown probe"),
        ({"clean": np.zeros((3, 2, 5))}, "clean"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change: dict, said: str) -> None:
    given = {"X": np.random.default_rng(0).normal(size=(8, 2, 3)), "y": [0, 1] * 4, "draws": 0} | change
    with pytest.raises((DefectionError, ValueError), match=said):
        sweep_layers(given.pop("X"), given.pop("y"), **given)
