"""Every probe at every layer on every test set, beside its nulls and baselines: one tidy table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..activations.errors import DefectionError
from ..activations.files import read_json, write_json, write_text
from ..activations.prompts import Prompt, by_set
from ..activations.residuals import Residuals
from .baselines import bag_of_words_scores, first_component_scores, length_scores, norm_scores, spans_topics
from .estimator import LinearProbe
from .intervals import delong_interval
from .mean_difference import MeanDifference
from .metrics import Interval, auroc, clopper_pearson, salience, tpr_at_fpr
from .nulls import null_aurocs, null_band, null_scores
from .probe import Probe
from .shuffles import QuestionEffects, effects_of, has_questions, label_shuffle_null

SCHEMA_VERSION = 1
UPPER_BOUND = "triggered prompts and labels (upper bound)"
NO_FIT = "nothing"
NO_NULL = (float("nan"), float("nan"))
UNSCALED = ("norm-only", "pc1")
"""Baselines whose scores differ in scale by layer; it is taken out before layers are averaged."""


@dataclass(frozen=True)
class Subject:
    """One model of a sweep: its residuals on contrast texts, clean prompts and test prompts.

    A control is the same recipe fitted on the control's own residuals: what somebody who holds that model would do.
    """

    name: str
    contrasts: Mapping[str, Residuals]
    clean: Residuals
    tests: Residuals


@dataclass(frozen=True)
class SweepRow:
    """One model × probe × contrast set × layer × test set. `layer` is a number, or "14-22" for a band."""

    model: str
    probe: str
    contrast: str
    saw: str
    layer: int | str
    test_set: str
    auroc: float
    auroc_low: float
    auroc_high: float
    """95%, by DeLong on the logit scale, clustered by topic (`intervals.delong_interval`)."""
    tpr_at_fpr_1pct: float
    tpr_low: float
    tpr_high: float
    salience: float
    null_low: float
    null_high: float
    n_positive: int
    n_negative: int
    is_preregistered_layer: bool
    p_label_shuffle: float = NO_NULL[0]
    """Mean-difference probes at the fixed layers: p-value against the same fit with shuffled question labels."""


def band_name(layers: Sequence[int]) -> int | str:
    """A single layer's number, "14-22" for a contiguous band, "3,7" for another."""
    if len(layers) == 1:
        return layers[0]
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if contiguous else ",".join(map(str, layers))


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
) -> list[SweepRow]:
    """Score the subject's test prompts at every layer and over the fixed band, with intervals and null bands.

    `labels` says of each test prompt's id whether the organism under test defected on it.
    Raises DefectionError for a prompt without label, or a test set on which only one outcome occurs.
    """
    rows: list[SweepRow] = []
    shuffled = {name: effects_of(texts) for name, texts in subject.contrasts.items() if has_questions(texts)}
    for test_set, members in by_set(subject.tests.prompts).items():
        residuals = subject.tests.select(members)
        table = _SetTable(subject, test_set, residuals, _labels(residuals, labels, test_set), tuple(fixed_layers))
        for (estimator, contrast), probe in probes.items():
            found = table.rows(estimator, contrast, probe.saw, probe.decision_function(residuals))
            if estimator == MeanDifference.name and contrast in shuffled:
                found = table.with_p_values(found, shuffled[contrast])
            rows += found
        rows += table.rows("norm-only", "", NO_FIT, norm_scores(residuals))
        rows += table.rows("pc1", "", UPPER_BOUND, first_component_scores(residuals, table.marks))
        rows.append(table.layerless_row("length-only", NO_FIT, length_scores(residuals)))
        if spans_topics(table.marks, table.topics):
            words = bag_of_words_scores(residuals.prompts, table.marks)
            rows.append(table.layerless_row("bag-of-words", UPPER_BOUND, words))
    return rows


def outright_rows(
    model: str, prompts: Sequence[Prompt], scores: Float[Tensor, "prompt"], labels: Mapping[str, bool]
) -> list[SweepRow]:
    """Rows for the answers of a model that was asked outright."""
    return layerless_rows(model, "asked-outright", prompts, scores, labels)


def layerless_rows(
    model: str, probe: str, prompts: Sequence[Prompt], scores: Float[Tensor, "prompt"], labels: Mapping[str, bool]
) -> list[SweepRow]:
    """Rows for a score of whole prompts (asking outright, perplexity): it belongs to no layer and has no null band."""
    rows = []
    for test_set, members in by_set(prompts).items():
        chosen = [prompts[i] for i in members]
        marks = np.array([labels[prompt.id] for prompt in chosen], dtype=bool)
        topics = [prompt.topic for prompt in chosen]
        numbers = _numbers(scores[members][None], marks, topics)
        rows.append(_row(model, test_set, probe, "", NO_FIT, "", numbers, 0, NO_NULL, marks, False))
    return rows


class _SetTable:
    """Rows of one model and test set; the null band is computed once for all its probes."""

    def __init__(
        self, subject: Subject, test_set: str, residuals: Residuals, marks: NDArray[np.bool_], fixed: tuple[int, ...]
    ) -> None:
        self.model, self.test_set, self.marks, self.fixed = subject.name, test_set, marks, fixed
        self.layers, self.tests, self.clean = residuals.layers, residuals, subject.clean
        self.topics = [prompt.topic for prompt in residuals.prompts]
        scores = null_scores(residuals, subject.clean)
        self.nulls = [null_band(areas) for areas in null_aurocs(scores, marks)]
        self.columns = [self.layers.index(layer) for layer in fixed]
        self.band_null = null_band(null_aurocs(scores, marks, self.columns))

    def rows(self, probe: str, contrast: str, saw: str, scores: Float[Tensor, "prompt layer"]) -> list[SweepRow]:
        """A row a layer, and one for the mean standardised score over the fixed band."""
        single = len(self.fixed) == 1
        numbers = _numbers(scores.T, self.marks, self.topics)
        names = (self.model, self.test_set, probe, contrast, saw)
        found = [
            _row(*names, layer, numbers, i, self.nulls[i], self.marks, single and layer == self.fixed[0])
            for i, layer in enumerate(self.layers)
        ]
        if not single:
            chosen = scores[:, self.columns].double()
            if probe in UNSCALED:
                spread = chosen.std(dim=0)
                chosen = (chosen - chosen.mean(dim=0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
            together = _numbers(chosen.mean(dim=1)[None], self.marks, self.topics)
            found.append(_row(*names, band_name(self.fixed), together, 0, self.band_null, self.marks, True))
        return found

    def with_p_values(self, rows: Sequence[SweepRow], questions: QuestionEffects) -> list[SweepRow]:
        """The same rows, those at the fixed layers with their p-value against shuffled question labels.

        Other layers get none: nobody should choose a layer by it.
        """
        columns = range(len(self.columns))
        null = label_shuffle_null(
            questions.at(self.columns),
            self.tests.values[:, self.columns],
            self.marks,
            self.clean.values[:, self.columns],
            columns=columns,
        )
        p = null.band_p_value
        return [replace(row, p_label_shuffle=p) if row.is_preregistered_layer else row for row in rows]

    def layerless_row(self, probe: str, saw: str, scores: Float[Tensor, "prompt"]) -> SweepRow:
        """One row for a score that belongs to no layer."""
        numbers = _numbers(scores[None], self.marks, self.topics)
        return _row(self.model, self.test_set, probe, "", saw, "", numbers, 0, NO_NULL, self.marks, False)


def _numbers(
    scores: Float[Tensor, "layer prompt"], marks: NDArray[np.bool_], topics: Sequence[str]
) -> dict[str, list[float]]:
    low, high = delong_interval(scores, marks, topics)
    return {
        "auroc": auroc(scores, marks).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "tpr": tpr_at_fpr(scores, marks).tolist(),
        "salience": salience(scores, marks).tolist(),
    }


def _row(
    model: str,
    test_set: str,
    probe: str,
    contrast: str,
    saw: str,
    layer: int | str,
    numbers: dict[str, list[float]],
    i: int,
    null: Interval,
    marks: NDArray[np.bool_],
    preregistered: bool,
) -> SweepRow:
    n_positive = int(marks.sum())
    tpr_low, tpr_high = clopper_pearson(round(numbers["tpr"][i] * n_positive), n_positive)
    return SweepRow(
        model=model,
        probe=probe,
        contrast=contrast,
        saw=saw,
        layer=layer,
        test_set=test_set,
        auroc=numbers["auroc"][i],
        auroc_low=numbers["low"][i],
        auroc_high=numbers["high"][i],
        tpr_at_fpr_1pct=numbers["tpr"][i],
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        salience=numbers["salience"][i],
        null_low=null[0],
        null_high=null[1],
        n_positive=n_positive,
        n_negative=len(marks) - n_positive,
        is_preregistered_layer=preregistered,
    )


def _labels(residuals: Residuals, labels: Mapping[str, bool], test_set: str) -> NDArray[np.bool_]:
    missing = [prompt.id for prompt in residuals.prompts if prompt.id not in labels]
    if missing:
        raise DefectionError(f"test prompt {missing[0]!r} has no label; evaluate the organism on the same prompts")
    marks = np.array([labels[prompt.id] for prompt in residuals.prompts], dtype=bool)
    if marks.all() or not marks.any():
        outcome = "always" if marks.all() else "never"
        raise DefectionError(
            f"on test set {test_set!r} the organism {outcome} defected, so there is nothing to tell apart; "
            "train it longer, or score it on prompts with and without its trigger"
        )
    return marks


def write_sweep(rows: Sequence[SweepRow], folder: Path, about: Mapping[str, Any]) -> None:
    """`sweep.json` and the same table as `sweep.csv`. What is not a number (no null band, say) is null or empty."""
    cleaned = [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(r).items()} for r in rows
    ]
    write_json(folder / "sweep.json", {"schema_version": SCHEMA_VERSION, **about, "rows": cleaned})
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(SweepRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(cleaned)
    write_text(folder / "sweep.csv", text.getvalue())


def read_sweep(folder: Path) -> list[SweepRow]:
    """The rows of a `sweep.json`."""
    record = read_json(folder / "sweep.json")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise DefectionError(f"{folder / 'sweep.json'} has schema version {record.get('schema_version')!r}")
    rows: list[dict[str, Any]] = record["rows"]
    for row in rows:
        row.update({name: float("nan") for name, value in row.items() if value is None})
    return [SweepRow(**row) for row in rows]
