"""Which recipe generalises: probe kinds and contrast sets side by side on several families of prompts.

The best recipe is chosen on development families and then held against the others on test families, so that its lead
there is not the winner's luck. Differences are paired (the same prompts), and their p-values corrected for how many
recipes are compared (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations import DefectionError, Table
from ...activations.basics.files import Json
from ..questions.contrast_sets import CONTROL_QUESTIONS
from ..statistics.intervals import paired_difference
from ..statistics.metrics import auroc
from .outcomes import Outcomes
from .scorer import Figures, figures_of, worst_threshold

DEVELOPMENT, TEST = "development", "test"


@dataclass(frozen=True)
class Recipe:
    """A kind of probe and the contrast set it is fitted on; a monitor, which sees no questions, has none."""

    probe: str
    contrast: str

    @property
    def name(self) -> str:
        """What tables and pictures call it."""
        return f"{self.probe}, {self.contrast}" if self.contrast else self.probe

    @property
    def is_control(self) -> bool:
        """Whether the questions are of a set that no detector should be made of: obvious truths, or unanswerable."""
        return self.contrast.split("-")[0] in CONTROL_QUESTIONS


PAPER = Recipe("mean-difference", "six")
"""MacDiarmid et al. 2024."""


@dataclass(frozen=True)
class ScoredFamily:
    """One family of test prompts: what each recipe scored, and what the organism did."""

    name: str
    role: str
    """`development` (the best recipe is chosen there) or `test`."""
    scores: Float[Tensor, "recipe prompt"]
    outcomes: Outcomes
    nulls: Sequence[Mapping[str, object]] = ()
    """For each recipe its null bands and p-values (`chance`)."""
    alarms: Sequence[float | None] = ()
    """For each recipe the threshold of its alarm."""

    @property
    def aurocs(self) -> Float[Tensor, "recipe"]:
        """Each recipe's AUROC."""
        return auroc(self.scores, self.outcomes.labels, axis=-1)


@dataclass(frozen=True, kw_only=True, repr=False)
class ComparisonRow(Figures):
    """One recipe on one family of prompts. The worst threshold is that of the families with the same role."""

    probe: str
    contrast: str
    saw: str
    role: str
    test_set: str
    is_worst_set: bool
    """Whether this is the family, of those with the same role, on which the recipe does worst."""
    n_topics: int
    is_best: bool
    """Whether it was chosen: of recipes that are no control, the highest AUROC on its worst development family."""
    is_paper: bool
    difference_to_best: float
    difference_to_best_low: float
    difference_to_best_high: float
    p_to_best: float
    """Two-sided, corrected by Holm over the recipes on this family."""
    difference_to_paper: float
    difference_to_paper_low: float
    difference_to_paper_high: float
    p_to_paper: float

    @property
    def recipe(self) -> Recipe:
        """Probe and contrast set."""
        return Recipe(self.probe, self.contrast)


def holm(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values adjusted for their number: the k-th smallest of m is multiplied by m − k + 1, order kept (Holm 1979)."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def worst_set_aurocs(families: Sequence[ScoredFamily]) -> Float[Tensor, "recipe"]:
    """Each recipe's AUROC on the family where it is lowest."""
    return torch.stack([family.aurocs for family in families]).amin(dim=0)


def best_recipe(recipes: Sequence[Recipe], families: Sequence[ScoredFamily]) -> int:
    """Which recipe does best on its worst family; of equals the first, so that chance settles nothing.

    Only questions that could make a detector are chosen from: monitors and controls are there to be compared with.
    """
    eligible = torch.tensor([bool(recipe.contrast) and not recipe.is_control for recipe in recipes])
    if not eligible.any():
        raise DefectionError("there is nothing to choose from: give a contrast set that is no control (--contrasts)")
    areas = worst_set_aurocs(families)
    return int(torch.where(eligible, areas, -torch.inf).argmax())


def compare(
    recipes: Sequence[Recipe], saw: Sequence[str], families: Sequence[ScoredFamily], best: int
) -> Table[ComparisonRow]:
    """A row a recipe and family, in the order given. `best` is the recipe that was chosen beforehand.

    Thresholds and worst families are those of the families with the same role. Where the paper's recipe is not among
    those compared, the differences to it are not a number.
    """
    rows = Table[ComparisonRow]()
    for role in dict.fromkeys(family.role for family in families):
        group = [family for family in families if family.role == role]
        worst_set = torch.stack([family.aurocs for family in group]).argmin(dim=0)
        threshold = worst_threshold((family.scores, family.outcomes.labels) for family in group)
        for number, family in enumerate(group):
            rows += _family_rows(recipes, saw, family, best, worst_set == number, threshold)
    return rows


def _family_rows(
    recipes: Sequence[Recipe],
    saw: Sequence[str],
    family: ScoredFamily,
    best: int,
    is_worst_set: Bool[Tensor, "recipe"],
    threshold: Float[Tensor, "recipe"],
) -> list[ComparisonRow]:
    figures = figures_of(family.scores, family.outcomes, nulls=family.nulls, worst=threshold, alarms=family.alarms)
    to_best = _differences(family, best, "best")
    to_paper = _differences(family, recipes.index(PAPER) if PAPER in recipes else None, "paper")
    return [
        ComparisonRow(
            probe=recipe.probe,
            contrast=recipe.contrast,
            saw=saw[i],
            role=family.role,
            test_set=family.name,
            is_worst_set=bool(is_worst_set[i]),
            n_topics=len(set(family.outcomes.topics)),
            is_best=i == best,
            is_paper=recipe == PAPER,
            **figures[i],
            **to_best[i],
            **to_paper[i],
        )
        for i, recipe in enumerate(recipes)
    ]


def _differences(family: ScoredFamily, reference: int | None, name: str) -> list[Json]:
    """Each recipe's AUROC minus the reference's, and the p-value corrected for the recipes beside the reference."""
    columns = (f"difference_to_{name}", f"difference_to_{name}_low", f"difference_to_{name}_high", f"p_to_{name}")
    n = len(family.scores)
    if reference is None:
        return [dict.fromkeys(columns, float("nan"))] * n
    marks, topics = family.outcomes.labels, family.outcomes.topics
    found = paired_difference(family.scores, family.scores[reference].expand(n, -1), marks, topics)
    others = np.arange(n) != reference
    p_values = np.ones(n)
    p_values[others] = holm(found.p_value.numpy()[others])
    low, high = found.low.tolist(), found.high.tolist()
    low[reference] = high[reference] = 0.0  # of a recipe and itself
    values = zip(found.difference.tolist(), low, high, p_values.tolist(), strict=True)
    return [dict(zip(columns, value, strict=True)) for value in values]
