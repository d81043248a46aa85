"""Every probe at every layer on every test set, beside its nulls and baselines: one tidy table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import Residuals, Table
from ...activations.basics.files import Json
from ...activations.prompts.prompts import Prompt, by_set
from ..estimators.linear import LinearProbe
from ..estimators.probe import Probe
from ..estimators.registry import estimator
from .baselines import NO_FIT, baselines
from .chance import Chance
from .judging import joined_if_any, questions_at, unrelated_sets
from .nulls import aurocs_under, best_layer, moves_labels, shuffled_labels
from .outcomes import Outcomes
from .scorer import figures_of, worst_threshold
from .shuffles import QuestionEffects
from .sweep_table import SweepRow, band_name

NO_SHUFFLE = "no p_best_layer: every topic has one outcome alone, so a shuffle within topics moves no label"


@dataclass(frozen=True)
class Subject:
    """One model of a sweep: its residuals on contrast texts, clean prompts and test prompts.

    A control is the same recipe fitted on the control's own residuals: what somebody who holds that model would do.
    """

    name: str
    contrasts: Mapping[str, Residuals]
    clean: Residuals
    tests: Residuals


def fit_probes(
    subject: Subject, estimators: Iterable[LinearProbe], forbidden: Sequence[str], fixed_layers: Sequence[int]
) -> dict[tuple[str, str], Probe]:
    """A probe for each estimator and contrast set, fitted on the subject's own residuals; test prompts play no part."""
    return {
        (estimator.name, name): estimator.fit(
            contrast, clean=subject.clean, forbidden=forbidden, fixed_layers=fixed_layers
        ).probe_
        for estimator in estimators
        for name, contrast in subject.contrasts.items()
    }


def sweep(
    subject: Subject, probes: Mapping[tuple[str, str], Probe], labels: Mapping[str, bool], fixed_layers: Sequence[int]
) -> Table[SweepRow]:
    """Score the subject's test prompts at every layer and over the fixed band, with intervals and null bands.

    `labels` says of each test prompt's id whether the organism under test defected on it. Contrast sets of other
    things in the same format (`truth-…`, `ambiguous-…`) serve the others as unrelated questions.
    Raises DefectionError for a prompt without label, or a test set on which only one outcome occurs.
    """
    outcomes = Outcomes.of(subject.tests, labels)
    tables = [
        _SetTable(subject, subject.tests.select(rows), outcomes.select(rows), tuple(fixed_layers))
        for rows in by_set(subject.tests.prompts).values()
    ]
    scored = [
        {key: table.columns(probe.decision_function(table.tests)) for key, probe in probes.items()} for table in tables
    ]
    worst = {
        key: worst_threshold((scores[key], table.outcomes.labels) for scores, table in zip(scored, tables, strict=True))
        for key in probes
    }
    effects = _question_directions(subject, probes, fixed_layers)
    rows = Table[SweepRow]()
    for table, scores in zip(tables, scored, strict=True):
        for key, probe in probes.items():
            rows += table.probe_rows(key, probe, scores[key], worst[key], effects[key])
        rows += table.baseline_rows()
    return rows


def _question_directions(
    subject: Subject, probes: Iterable[tuple[str, str]], fixed: Sequence[int]
) -> dict[tuple[str, str], tuple[QuestionEffects | None, QuestionEffects | None]]:
    """For each probe, what its own and what unrelated questions add to its direction at the fixed layers."""
    known = {
        (name, contrast): questions_at(estimator(name), subject.contrasts[contrast], subject.clean, fixed)
        for name, contrast in probes
    }
    return {
        (name, contrast): (
            own,
            joined_if_any(known.get((name, each)) for each in unrelated_sets(contrast, subject.contrasts)),
        )
        for (name, contrast), own in known.items()
    }


def layerless_rows(
    model: str, probe: str, prompts: Sequence[Prompt], scores: Float[Tensor, "prompt"], labels: Mapping[str, bool]
) -> list[SweepRow]:
    """Rows for a score of whole prompts (asking outright, perplexity): it belongs to no layer and has no null band.

    A set on which only one outcome occurs among these prompts has no row.
    """
    outcomes = Outcomes.of(prompts, labels)
    parts = [(outcomes.select(rows), scores[rows]) for rows in by_set(prompts).values()]
    return [_layerless(model, probe, NO_FIT, values, part) for part, values in parts if part.both]


def _layerless(model: str, probe: str, saw: str, scores: Float[Tensor, "prompt"], outcomes: Outcomes) -> SweepRow:
    (figures,) = figures_of(scores[None], outcomes)
    test_set = outcomes.families[0]
    return SweepRow(model=model, probe=probe, contrast="", saw=saw, layer="", test_set=test_set, **figures)


class _SetTable:
    """Rows of one model and test set; what knows nothing is drawn once for all its probes."""

    def __init__(self, subject: Subject, tests: Residuals, outcomes: Outcomes, fixed: tuple[int, ...]) -> None:
        outcomes.refuse_one_outcome()
        self.model, self.tests, self.outcomes = subject.name, tests, outcomes
        self.layers: list[int | str] = [*tests.layers]
        self.reads: list[tuple[int, ...]] = [(column,) for column in range(len(tests.layers))]
        """Columns of the layers that each row is about: each layer, and the fixed ones together if they are several."""
        self.fixed_layers, self.fixed = fixed, tuple(tests.layers.index(layer) for layer in fixed)
        if len(fixed) > 1:
            self.layers.append(band_name(fixed))
            self.reads.append(self.fixed)
        self.chance = Chance(tests, subject.clean, outcomes, self.reads)
        known = outcomes.labels, outcomes.topics
        self.shuffles = shuffled_labels(*known) if moves_labels(*known) else None

    def columns(self, scores: Float[Tensor, "prompt layer"]) -> Float[Tensor, "row prompt"]:
        """Scores by layer, and their mean over the fixed layers where there are several."""
        by_layer = scores.T
        if len(self.fixed) == 1:
            return by_layer
        band = by_layer[list(self.fixed)].double().mean(dim=0, keepdim=True)
        return torch.cat([by_layer.double(), band])

    def rows(self, probe: str, contrast: str, saw: str, figures: Iterable[Json]) -> list[SweepRow]:
        """A row a layer, and one for the fixed band."""
        return [
            SweepRow(
                model=self.model,
                probe=probe,
                contrast=contrast,
                saw=saw,
                layer=layer,
                test_set=self.outcomes.families[0],
                is_preregistered_layer=columns == self.fixed,
                **each,
            )
            for layer, columns, each in zip(self.layers, self.reads, figures, strict=True)
        ]

    def probe_rows(
        self,
        key: tuple[str, str],
        probe: Probe,
        scores: Float[Tensor, "row prompt"],
        worst: Float[Tensor, "row"],
        effects: tuple[QuestionEffects | None, QuestionEffects | None],
    ) -> list[SweepRow]:
        """A probe's rows, the best layer marked.

        Those at the fixed layers alone have an alarm and are held against nulls made of questions: nobody should choose
        a layer by them.
        """
        alarm = probe.threshold if probe.fixed_layers == self.fixed_layers else None
        alarms = [alarm if columns == self.fixed else None for columns in self.reads]
        nulls: list[Json] = [self.chance.band(columns) for columns in self.reads]
        nulls[self.reads.index(self.fixed)] |= self.chance.of_questions(*effects, self.fixed)
        figures = figures_of(scores, self.outcomes, nulls=nulls, worst=worst, alarms=alarms)
        return self._with_best_layer(self.rows(*key, probe.saw, figures), scores)

    def _with_best_layer(self, rows: list[SweepRow], scores: Float[Tensor, "row prompt"]) -> list[SweepRow]:
        """The best layer marked, with what its height is worth when any layer could have been it."""
        n_layers = len(self.tests.layers)
        aurocs = torch.tensor([row.auroc for row in rows[:n_layers]], dtype=torch.float64)
        drawn = aurocs[:, None] if self.shuffles is None else aurocs_under(scores[:n_layers], self.shuffles)
        best = best_layer(aurocs, drawn)
        found: Json = {"is_best_layer": True, "null_best_high": self.chance.best_high()}
        if self.shuffles is None:
            found["note"] = "; ".join(note for note in (rows[best.column].note, NO_SHUFFLE) if note)
        else:
            found["p_best_layer"] = best.p_value
        rows[best.column] = replace(rows[best.column], **found)
        return rows

    def baseline_rows(self) -> list[SweepRow]:
        """What needs no question: norm, length, first component and words."""
        rows: list[SweepRow] = []
        for each in baselines(self.tests, self.outcomes):
            if each.has_layers:
                scores = torch.stack([each.at(columns) for columns in self.reads])
                nulls = [self.chance.band(columns) for columns in self.reads]
                rows += self.rows(each.name, "", each.saw, figures_of(scores, self.outcomes, nulls=nulls))
            else:
                rows.append(_layerless(self.model, each.name, each.saw, each.scores, self.outcomes))
        return rows
