"""Recipes held against each other: Holm's correction, worst families, differences, thresholds, the picture."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.activations.basics.tables import read_rows, write_rows
from defection.probes import Outcomes
from defection.probes.evidence.comparison import (
    DEVELOPMENT,
    PAPER,
    TEST,
    ComparisonRow,
    Recipe,
    ScoredFamily,
    best_recipe,
    compare,
    holm,
    worst_set_aurocs,
)
from defection.probes.pictures.comparison_figure import MOST, comparison_figure, save_comparison_figure, shown_recipes
from defection.probes.statistics.metrics import auroc
from hypothesis import given
from hypothesis import strategies as st

RECIPES = [PAPER, Recipe("whitened", "forty"), Recipe("mean-difference", "forty"), Recipe("mahalanobis", "")]
STRENGTHS = torch.tensor([0.5, 2.5, 1.5, 0.0])


def family(name: str, role: str, seed: int, strengths: torch.Tensor = STRENGTHS, n: int = 120) -> ScoredFamily:
    generator = torch.Generator().manual_seed(seed)
    marks = torch.arange(n) % 2 == 0
    scores = torch.randn(len(strengths), n, generator=generator) + strengths[:, None] * marks
    outcomes = Outcomes(marks.numpy(), (name,) * n, tuple(str(i // 4) for i in range(n)), marks.numpy())
    return ScoredFamily(name, role, scores, outcomes, [{"null_low": 0.3, "null_high": 0.7}] * len(scores))


@pytest.fixture
def families() -> list[ScoredFamily]:
    return [family("a", DEVELOPMENT, 1), family("b", DEVELOPMENT, 2), family("c", TEST, 3), family("d", TEST, 4)]


@pytest.fixture
def rows(families: list[ScoredFamily]) -> list[ComparisonRow]:
    return compare(RECIPES, ["questions only"] * 4, families, best_recipe(RECIPES, families[:2]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(values: list[float]) -> None:
    """Marcus, Peritz and Gabriel 1976: the largest Bonferroni p-value of the intersections that hold a hypothesis."""
    n = len(values)
    for i, found in enumerate(holm(values)):
        sets = [s for size in range(1, n + 1) for s in combinations(range(n), size) if i in s]
        expected = max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets)
        assert found == pytest.approx(expected)


def test_the_best_recipe_is_best_on_its_worst_family() -> None:
    steady, brilliant = torch.tensor([2.0, 3.0]), torch.tensor([2.0, 0.0])
    both = [family("a", DEVELOPMENT, 1, steady), family("b", DEVELOPMENT, 2, brilliant)]
    assert best_recipe(RECIPES[:2], both) == 0
    areas = torch.stack([auroc(f.scores, f.outcomes.labels) for f in both])
    assert torch.equal(worst_set_aurocs(both), areas.min(dim=0).values)


def test_neither_a_control_nor_a_monitor_is_chosen(families: list[ScoredFamily]) -> None:
    """However well obvious truths do, they are what the questions have to beat."""
    recipes = [PAPER, Recipe("whitened", "truth-carried"), Recipe("mean-difference", "ambiguous"), Recipe("pc1", "")]
    assert best_recipe(recipes, families) == 0
    with pytest.raises(DefectionError, match="nothing to choose from"):
        best_recipe(recipes[1:], families)


def test_rows_are_those_of_each_recipe_and_family(rows: list[ComparisonRow], families: list[ScoredFamily]) -> None:
    assert [(r.test_set, r.recipe) for r in rows] == [(f.name, recipe) for f in families for recipe in RECIPES]
    for row in rows:
        found = next(f for f in families if f.name == row.test_set)
        i = RECIPES.index(row.recipe)
        assert row.auroc == pytest.approx(float(auroc(found.scores[i], found.outcomes.labels)))
        assert row.auroc_low < row.auroc < row.auroc_high
        assert (row.n_positive, row.n_negative, row.n_topics) == (60, 60, 30)
    assert {row.recipe for row in rows if row.is_best} == {RECIPES[1]}
    for role in (DEVELOPMENT, TEST):
        for recipe in RECIPES:
            mine = [row for row in rows if row.role == role and row.recipe == recipe]
            worst = [row for row in mine if row.is_worst_set]
            assert len(worst) == 1
            assert worst[0].auroc == min(row.auroc for row in mine)


def test_differences_to_the_best_and_to_the_papers_recipe(rows: list[ComparisonRow]) -> None:
    for test_set in "cd":
        mine = {row.recipe: row for row in rows if row.test_set == test_set}
        for row in mine.values():
            assert row.difference_to_best == pytest.approx(row.auroc - mine[RECIPES[1]].auroc)
            assert row.difference_to_paper == pytest.approx(row.auroc - mine[PAPER].auroc)
            assert row.difference_to_best_low <= row.difference_to_best <= row.difference_to_best_high
        same = mine[RECIPES[1]]
        assert (same.difference_to_best, same.difference_to_best_low, same.p_to_best) == (0, 0, 1)
        assert mine[RECIPES[3]].p_to_best < 1e-3
        assert mine[RECIPES[1]].p_to_paper < 1e-3


def test_without_the_papers_recipe_there_is_nothing_to_differ_from(
    families: list[ScoredFamily], tmp_path: Path
) -> None:
    others = [Recipe("ridge", "six"), *RECIPES[1:]]
    rows = compare(others, ["questions only"] * 4, families, 1)
    assert all(np.isnan(row.difference_to_paper) for row in rows)
    write_rows(tmp_path / "comparison.json", ComparisonRow, rows, {})
    assert [repr(row) for row in read_rows(tmp_path / "comparison.json", ComparisonRow)] == [repr(row) for row in rows]


def test_pitfall_24_one_threshold_keeps_its_promise_on_the_worst_family() -> None:
    """A family whose ordinary prompts score high takes detections away everywhere."""
    calm, loud = family("calm", TEST, 1, n=400), family("loud", TEST, 2, n=400)
    loud = replace(loud, scores=loud.scores + 2 * ~torch.from_numpy(loud.outcomes.labels))
    alone = {row.recipe: row for row in compare(RECIPES, [""] * 4, [calm], 1)}
    beside = {row.recipe: row for row in compare(RECIPES, [""] * 4, [calm, loud], 1) if row.test_set == "calm"}
    for i, recipe in enumerate(RECIPES):
        assert beside[recipe].tpr_at_worst_fpr_1pct <= alone[recipe].tpr_at_worst_fpr_1pct
        assert beside[recipe].tpr_worst_low <= beside[recipe].tpr_at_worst_fpr_1pct <= beside[recipe].tpr_worst_high
        cut = max(float(f.scores[i][~f.outcomes.labels].sort(descending=True).values[2]) for f in (calm, loud))
        expected = float((calm.scores[i][calm.outcomes.labels] > cut).double().mean())
        assert beside[recipe].tpr_at_worst_fpr_1pct == pytest.approx(expected)
    assert beside[RECIPES[1]].tpr_at_worst_fpr_1pct < alone[RECIPES[1]].tpr_at_worst_fpr_1pct


def test_the_picture_has_a_panel_a_family_and_a_line_a_recipe(rows: list[ComparisonRow], tmp_path: Path) -> None:
    figure = comparison_figure(rows)
    assert [ax.get_title() for ax in figure.axes] == ["a\n(development)", "b\n(development)", "c\n(test)", "d\n(test)"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [recipe.name for recipe in shown_recipes(rows)]
    assert names[0] == "whitened, forty"
    first = save_comparison_figure(rows, tmp_path / "one")
    second = save_comparison_figure(rows, tmp_path / "two")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_picture_of_many_recipes_keeps_the_leaders_of_every_kind_and_set() -> None:
    recipes = [Recipe(f"probe-{i}", f"set-{j}") for i in range(9) for j in range(9)]
    strengths = torch.linspace(0, 2, len(recipes))
    families = [family("a", DEVELOPMENT, 1, strengths, n=40), family("b", TEST, 2, strengths, n=40)]
    rows = compare(recipes, [""] * len(recipes), families, best_recipe(recipes, families[:1]))
    shown = shown_recipes(rows)
    assert len(shown) <= MOST
    assert {recipe.probe for recipe in shown} == {f"probe-{i}" for i in range(9)}
    assert {recipe.contrast for recipe in shown} == {f"set-{j}" for j in range(9)}
