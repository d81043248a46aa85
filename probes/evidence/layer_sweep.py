"""A sweep of rows that one brings oneself: labelled activations, each scored by fits that never saw its topic.

Held-out scores are no independent draws: each is made by a fit on the other rows' labels. To shuffle the labels of
finished scores would be too kind (a nominal 5% was 11% in simulations of 60 rows). So a null draw is the whole way
once more: labels dealt anew, folds, fits, scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from ...activations import DefectionError, ModelIdentity, Residuals, user_prompt
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ..estimators.estimator import ProbeEstimator
from .baselines import topic_folds
from .chance import Chance
from .nulls import best_layer, moves_labels, p_value, shuffled_labels, standardised
from .outcomes import Outcomes
from .scorer import figures_of
from .sweep_table import SweepRow

SAW = "labels of other topics"
OWN = "own activations"


@dataclass(frozen=True)
class LabelledRows:
    """Rows to be told apart, and what is known of each."""

    values: Float[Tensor, "n layer d"]
    layers: tuple[int, ...]
    marks: NDArray[np.bool_]
    topics: tuple[str, ...]
    """[n] rows of one topic never stand on both sides of a split."""
    clean: Float[Tensor, "clean layer d"] | None = None
    """Ordinary rows for kinds of probes that see some; they also stand for what is ordinary in the null bands."""

    def dealt(self, draws: int, seed: int) -> Iterator[NDArray[np.bool_]]:
        """Labels dealt anew: within topics, or where no topic holds both outcomes, from topic to topic."""
        if moves_labels(self.marks, self.topics):
            yield from shuffled_labels(self.marks, self.topics, count=draws, seed=seed).numpy()
            return
        _, first, member = np.unique(self.topics, return_index=True, return_inverse=True)
        rng = np.random.default_rng(seed)
        for _ in range(draws):
            yield rng.permuted(self.marks[first])[member]


def layer_rows(
    rows: LabelledRows, estimator: BaseEstimator, *, folds: int, draws: int, seed: int
) -> tuple[list[SweepRow], Float[Tensor, "layer n"]]:
    """A row a layer, and the held-out scores; see `pictures.layer_sweep.sweep_layers`."""
    scores = held_out_scores(rows, rows.marks, estimator, folds)
    outcomes = Outcomes(rows.marks, ("",) * len(rows.marks), rows.topics, np.zeros(len(rows.marks), dtype=bool))
    ordinary = rows.values[torch.from_numpy(~rows.marks)] if rows.clean is None else rows.clean
    chance = Chance(
        _residuals(rows.values, rows), _residuals(ordinary, rows), outcomes, [(i,) for i in range(len(rows.layers))]
    )
    nulls: list[Json] = [chance.band((i,)) for i in range(len(rows.layers))]
    areas = outcomes.aurocs(scores)
    best = None
    if draws:
        null = shuffled_aurocs(rows, estimator, folds=folds, draws=draws, seed=seed)
        for row, value in zip(nulls, p_value(areas, null).tolist(), strict=True):
            row["p_label_shuffle"] = value
        best = best_layer(areas, null)
    name = estimator.name if isinstance(estimator, ProbeEstimator) else type(estimator).__name__
    found = [
        SweepRow(model=OWN, probe=name, contrast="", saw=SAW, layer=layer, test_set="", **figures)
        for layer, figures in zip(rows.layers, figures_of(scores, outcomes, nulls=nulls), strict=True)
    ]
    column = best_layer(areas, areas[:, None]).column
    p = float("nan") if best is None else best.p_value
    marked: Json = {"is_best_layer": True, "null_best_high": chance.best_high(), "p_best_layer": p}
    found[column] = replace(found[column], **marked)
    return found, scores


def shuffled_aurocs(
    rows: LabelledRows, estimator: BaseEstimator, *, folds: int, draws: int, seed: int
) -> Float[Tensor, "layer draw"]:
    """AUROCs of the same cross-fitting with labels dealt anew; one deal serves every layer."""
    found = []
    with progress("Fitting on shuffled labels", total=draws, unit="draws") as advance:
        for marks in rows.dealt(draws, seed):
            outcomes = Outcomes(marks, ("",) * len(marks), rows.topics, np.zeros(len(marks), dtype=bool))
            found.append(outcomes.aurocs(held_out_scores(rows, marks, estimator, folds)))
            advance(1)
    return torch.stack(found, dim=1)


def held_out_scores(
    rows: LabelledRows, marks: NDArray[np.bool_], estimator: BaseEstimator, folds: int
) -> Float[Tensor, "layer n"]:
    """Each row's scores by a fit on other topics, in standard deviations of the rows that this fit did see.

    DefectionError where an outcome occurs in one topic only.
    """
    fold = topic_folds(marks, rows.topics, folds)
    scores = torch.empty(len(rows.layers), len(marks), dtype=torch.float64)
    for number in np.unique(fold):
        held = torch.from_numpy(fold == number)
        seen, new = _scored(estimator, rows, marks, held)
        scores[:, held] = standardised(new.T, seen.T)
    return scores


def _scored(
    estimator: BaseEstimator, rows: LabelledRows, marks: NDArray[np.bool_], held: Bool[Tensor, "n"]
) -> tuple[Float[Tensor, "seen layer"], Float[Tensor, "held layer"]]:
    """Scores, by a fit on the rows that are not held out, of those and of the ones that are."""
    kept = ~held
    train, new, known = rows.values[kept], rows.values[held], marks[kept.numpy()]
    if not isinstance(estimator, ProbeEstimator):
        columns = [_by_layer(estimator, train[:, i], known, new[:, i]) for i in range(len(rows.layers))]
        seen, found = (torch.stack(part, dim=1) for part in zip(*columns, strict=True))
        return seen, found
    topics = np.asarray(rows.topics)[kept.numpy()]
    fit = clone(estimator).fit(train, known, groups=topics, clean=rows.clean)
    seen, found = fit.decision_function(train), fit.decision_function(new)
    if found.shape != (len(new), len(rows.layers)):
        raise DefectionError(f"a {estimator.name} probe gives no score for each layer; sweep a kind that does")
    return seen.double().cpu(), found.double().cpu()


def _by_layer(
    estimator: BaseEstimator, train: Float[Tensor, "seen d"], marks: NDArray[np.bool_], new: Float[Tensor, "held d"]
) -> tuple[Float[Tensor, "seen"], Float[Tensor, "held"]]:
    """One layer by any scikit-learn classifier of two classes."""
    fit = clone(estimator).fit(train.cpu().numpy(), marks)

    def scores(part: Tensor) -> Tensor:
        values = part.cpu().numpy()
        found = fit.decision_function(values) if hasattr(fit, "decision_function") else fit.predict_proba(values)[:, 1]
        return torch.as_tensor(np.asarray(found, dtype=np.float64))

    return scores(train), scores(new)


def _residuals(values: Float[Tensor, "n layer d"], rows: LabelledRows) -> Residuals:
    """The rows as the nulls take them, of no model that is known."""
    prompts = tuple(user_prompt("a row", id=str(number)) for number in range(len(values)))
    return Residuals(values, rows.layers, prompts, (0,) * len(values), ModelIdentity(OWN, "", ""))
