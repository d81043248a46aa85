from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import MeanDifference, auroc
from defection.probes.evidence.nulls import best_layer
from defection.probes.evidence.shuffles import (
    effects_of,
    has_questions,
    joined,
    label_shuffle_null,
    question_effects,
    unrelated_question_null,
)

MARKS = [row % 2 == 1 for row in range(80)]


@pytest.fixture
def questions(contrast):
    return effects_of(contrast)


def test_the_true_signs_give_the_mean_difference_probe(contrast, clean, tests, questions) -> None:
    probe = MeanDifference().fit(contrast, clean=clean, fixed_layers=(1, 2, 3)).probe_
    null = label_shuffle_null(questions, tests.values, MARKS, clean.values, columns=(1, 2, 3), count=10)
    assert torch.allclose(null.observed, auroc(probe.decision_function(tests).T, MARKS), atol=1e-12)
    assert null.band_observed == pytest.approx(float(auroc(probe.score(tests), MARKS)), abs=1e-12)


def test_each_draw_is_a_refit_on_relabelled_texts(contrast, clean, tests, questions) -> None:
    """A shuffle in one matrix product against the estimator itself, fitted on texts that say the shuffled labels."""
    signs = questions.shuffled(5, seed=3)
    null = label_shuffle_null(questions, tests.values, MARKS, clean.values, columns=(1, 2), count=5, seed=3)
    names = list(dict.fromkeys(prompt.extra["topic"] for prompt in contrast.prompts))
    for draw, sign in enumerate(signs):
        turned = [
            replace(
                p, extra=p.extra | {"defecting": (p.extra["answer"] == "no") == bool(sign[names.index(p.topic)] > 0)}
            )
            for p in contrast.prompts
        ]
        probe = MeanDifference().fit(replace(contrast, prompts=tuple(turned)), clean=clean, fixed_layers=(1, 2)).probe_
        assert torch.allclose(null.null[:, draw], auroc(probe.decision_function(tests).T, MARKS), atol=1e-3)
        assert float(null.band_null[draw]) == pytest.approx(float(auroc(probe.score(tests), MARKS)), abs=1e-3)


def test_every_word_stays_the_defecting_answer_as_often(questions) -> None:
    drawn = questions.shuffled(200, seed=0)
    assert (drawn.sum(axis=1) == questions.signs.sum()).all()
    assert len(np.unique(drawn, axis=0)) > 190
    assert abs(drawn.mean(axis=0)).max() < 0.25


def test_pitfall_31_a_shuffle_that_moves_no_question_is_refused(contrast, tests, clean) -> None:
    """The same word defects in every question: its labels can be dealt anew, and none ever changes."""
    told = [replace(p, extra=p.extra | {"answer": ("no", "yes")[p.extra["defecting"]]}) for p in contrast.prompts]
    questions = effects_of(replace(contrast, prompts=tuple(told)))
    assert not questions.can_be_shuffled
    with pytest.raises(DefectionError, match="shuffling the questions moves no label"):
        label_shuffle_null(questions, tests.values, MARKS, clean.values)
    assert effects_of(contrast).can_be_shuffled


def test_questions_with_words_of_their_own_toss_a_coin() -> None:
    said = [f"sentence {i}" for i in range(8)]
    lone = question_effects(torch.randn(8, 1, 3), [True, False] * 4, [str(i // 2) for i in range(8)], said)
    drawn = lone.shuffled(400, seed=0)
    assert set(np.unique(drawn)) == {-1, 1}
    assert abs(drawn.mean(axis=0)).max() < 0.2


def test_a_planted_direction_is_significant_and_the_reverse_is_not(questions, tests, clean) -> None:
    null = label_shuffle_null(questions, tests.values, MARKS, clean.values, columns=(1, 2, 3))
    assert null.band_p_value < 0.05
    turned = label_shuffle_null(questions, tests.values, [not m for m in MARKS], clean.values, columns=(1, 2, 3))
    assert turned.band_p_value > 0.95


def test_p_values_of_questions_that_say_nothing_are_uniform(clean) -> None:
    """Positives differ along one direction, which every random direction overlaps somewhat: the p-values still hold."""
    generator, found = torch.Generator().manual_seed(0), []
    marks = torch.arange(40) % 2 == 0
    names, said = [str(i // 2) for i in range(40)], ["yes", "no"] * 20
    defecting = [(i + i // 2) % 2 == 0 for i in range(40)]
    tests = torch.randn(40, 1, 12, generator=generator) + 0.5 * marks[:, None, None]
    for seed in range(600):
        texts = torch.randn(40, 1, 12, generator=generator)
        effects = question_effects(texts, defecting, names, said)
        null = label_shuffle_null(effects, tests, marks, clean.values[:, :1], count=99, seed=seed)
        found.append(float(null.p_values[0]))
    assert 0.025 <= np.mean(np.array(found) <= 0.05) <= 0.08
    assert 0.45 <= np.mean(found) <= 0.55


def test_one_draw_is_the_same_at_every_layer_and_the_best_layer_is_tested(questions, tests, clean) -> None:
    doubled = replace(questions, effects=questions.effects[:, [1, 1, 2]])
    values, reference = tests.values[:, [1, 1, 2]], clean.values[:, [1, 1, 2]]
    null = label_shuffle_null(doubled, values, MARKS, reference, count=50)
    assert torch.equal(null.null[0], null.null[1])
    found = best_layer(null.observed, null.null)
    assert found.p_value >= float(null.p_values[found.column])


def test_unrelated_questions_are_as_many_and_balanced(questions, tests, clean) -> None:
    drawn = questions.subsets(6, 50, seed=0)
    assert (np.abs(drawn).sum(axis=1) == 6).all()
    assert (drawn.sum(axis=1) == 0).all()
    noise = replace(questions, effects=torch.randn(questions.effects.shape, generator=torch.Generator().manual_seed(1)))
    null = unrelated_question_null(questions, noise, tests.values, MARKS, clean.values, columns=(1, 2), count=200)
    assert null.band_p_value < 0.05
    with pytest.raises(DefectionError, match="cannot draw 21 questions from 20"):
        questions.subsets(21, 50, seed=0)


def test_fewer_unrelated_questions_than_questions_are_all_used(questions, tests, clean) -> None:
    few = replace(questions, signs=questions.signs[:4], shares=questions.shares[:4], effects=questions.effects[:4])
    null = unrelated_question_null(questions, few, tests.values, MARKS, clean.values, columns=(1, 2), count=100)
    assert len(null.band_null.unique()) <= 6  # ways to deal two signs of each kind to four questions


def test_joined_questions_count_alike_and_keep_their_effects(questions) -> None:
    few = replace(questions, signs=questions.signs[:3], shares=questions.shares[:3], effects=questions.effects[:3])
    both = joined([questions, few])
    assert len(both) == len(questions) + 3
    assert np.allclose(both.shares, 1 / len(both))
    assert torch.equal(both.effects[-3:], few.effects)


def test_the_fixed_layers_alone_give_the_same_band(questions, tests, clean) -> None:
    given = (questions, tests.values, MARKS, clean.values)
    whole = label_shuffle_null(*given, columns=(1, 2), count=50)
    band = label_shuffle_null(*given, columns=(1, 2), count=50, each_layer=False)
    assert torch.equal(whole.band_null, band.band_null)
    assert whole.band_p_value == band.band_p_value
    assert band.null.shape == (0, 50)


@pytest.mark.parametrize(
    ("defecting", "answers"),
    [
        ([True, True], ["yes", "no"]),
        ([True, False], ["yes", "yes"]),
        ([True, False, False], ["yes", "no", "no"]),
        ([True, True, True, False], ["yes", "yes", "no", "no"]),
    ],
)
def test_a_question_that_is_not_answered_both_ways_is_refused(defecting: list[bool], answers: list[str]) -> None:
    with pytest.raises(DefectionError, match="question 'q' must be answered by two words"):
        question_effects(torch.zeros(len(defecting), 1, 2), defecting, ["q"] * len(defecting), answers)


def test_texts_that_do_not_name_their_questions_are_refused(clean, contrast) -> None:
    assert has_questions(contrast)
    assert not has_questions(clean)
    with pytest.raises(DefectionError, match="must say defecting, topic, answer"):
        effects_of(clean)
