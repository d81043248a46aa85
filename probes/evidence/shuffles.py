"""Nulls made of questions: what a mean difference reaches when its questions say nothing about defection.

A direction drawn from a sphere shares neither the norms of real residuals nor the ways in which contrast texts differ
from one another. Here a null direction is fitted as the probe is, on the same texts, with the labels of whole questions
shuffled. In a balanced set a mean difference is Σ_q ±u_q, where u_q is what answering question q with one word instead
of the other does and the signs say which word defects; a shuffle deals the same signs to other questions, so that the
word itself cancels as before. All shuffles are one matrix product with the questions' own scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb, prod

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ...activations import DefectionError, Residuals
from ..estimators.guard import Evidence
from ..estimators.linear import LinearProbe
from ..estimators.ragged import refuse_ragged
from ..statistics.metrics import auroc
from ..statistics.ranking import Labels, class_marks
from .nulls import DIRECTIONS, p_value
from .randomisation import DRAWS, Trial, question_null

ONE_FAMILY = "prompts"
KEYS = ("defecting", "topic", "answer")
"""What contrast texts say of themselves; their topic is their question."""


@dataclass(frozen=True)
class QuestionEffects:
    """What each question's answer does to the residual, apart from whether that answer defects."""

    effects: Float[Tensor, "question layer d_model"]
    """Mean residual after the first of its two words (in alphabetical order) minus after the second, fp64."""
    signs: NDArray[np.int64]
    """[question] 1 where the first word is the defecting answer, −1 where the second is."""
    shares: NDArray[np.float64]
    """[question] its share of the texts."""
    words: tuple[str, ...]
    """[question] the two words: signs are dealt only among questions with the same ones."""

    def __len__(self) -> int:
        return len(self.signs)

    def at(self, columns: Sequence[int]) -> QuestionEffects:
        """The same effects at some of the layers."""
        return replace(self, effects=self.effects[:, list(columns)])

    def weights(self, signs: NDArray[np.int64]) -> Float[Tensor, "draw question"]:
        """Weights of the effects in the mean difference of labellings [draw, question]."""
        return torch.from_numpy(signs * self.shares)

    @property
    def can_be_shuffled(self) -> bool:
        """Whether dealing signs anew can change one: a lone question's, or those of two that differ."""
        counts = Counter(self.words)
        signs = set(zip(self.words, self.signs.tolist(), strict=True))
        return any(counts[pair] == 1 or {(pair, 1), (pair, -1)} <= signs for pair in counts)

    def shuffled(self, count: int, seed: int) -> NDArray[np.int64]:
        """[draw, question] signs dealt anew, every word the defecting answer as often as before.

        Two words that only one question has (whole sentences, say) need no balance: its sign is a toss of a coin.
        Where there are no more than `count` other labellings these are all of them, once each, and the p-value that
        they give is exact (six questions have nineteen others). Raises DefectionError where no sign would move.
        """
        if not self.can_be_shuffled:
            raise DefectionError(
                "of each two words the same one defects in every question, so shuffling the questions moves no label; "
                "give questions that differ in which word defects"
            )
        groups = [np.flatnonzero(np.asarray(self.words) == pair) for pair in sorted(set(self.words))]
        ways = [2 if len(rows) == 1 else comb(len(rows), int((self.signs[rows] > 0).sum())) for rows in groups]
        if prod(ways) - 1 <= count:
            return self._all_others(groups)
        rng = np.random.default_rng(seed)
        drawn = np.repeat(self.signs[None], count, axis=0)
        for rows in groups:
            if len(rows) == 1:
                drawn[:, rows] = rng.choice([-1, 1], size=(count, 1))
            else:
                drawn[:, rows] = rng.permuted(drawn[:, rows], axis=1)
        return drawn

    def _all_others(self, groups: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        choices = []
        for rows in groups:
            positive = int((self.signs[rows] > 0).sum())
            sizes = [0, 1] if len(rows) == 1 else [positive]
            choices.append([chosen for size in sizes for chosen in combinations(rows.tolist(), size)])
        drawn = np.full((prod(map(len, choices)), len(self.signs)), -1, dtype=np.int64)
        for row, chosen in enumerate(product(*choices)):
            drawn[row, [place for part in chosen for place in part]] = 1
        others: NDArray[np.int64] = drawn[(drawn != self.signs).any(axis=1)]
        return others

    def subsets(self, size: int, count: int, seed: int) -> NDArray[np.int64]:
        """[draw, question] random signs on random subsets of `size` questions, half of each sign; 0 elsewhere."""
        if size > len(self.signs):
            raise DefectionError(f"cannot draw {size} questions from {len(self.signs)}; give more unrelated questions")
        signs = np.zeros(len(self.signs), dtype=np.int64)
        signs[:size] = np.where(np.arange(size) % 2 == 0, 1, -1)
        return np.random.default_rng(seed).permuted(np.repeat(signs[None], count, axis=0), axis=1)


def question_effects(
    values: Float[Tensor, "text layer d_model"],
    defecting: Sequence[bool],
    questions: Sequence[str],
    answers: Sequence[str],
) -> QuestionEffects:
    """Effects from contrast texts; DefectionError naming a question that is not answered in two ways, evenly."""
    marks, names, said = np.asarray(defecting, dtype=bool), np.asarray(questions), np.asarray(answers)
    if not len(values) == len(marks) == len(names) == len(said):
        raise DefectionError(f"{len(values)} texts do not fit {len(marks)} labels, {len(names)} questions or answers")
    if (odd := _unpaired(defecting, questions, answers)) is not None:
        raise DefectionError(f"question {odd!r} must be answered by two words, each as often, one of them defecting")
    effects, signs, shares, words = [], [], [], []
    for name in dict.fromkeys(questions):
        rows = names == name
        pair = sorted(set(said[rows].tolist()))
        first = rows & (said == pair[0])
        one, other = (values[torch.from_numpy(each).to(values.device)] for each in (first, rows & ~first))
        effects.append(one.double().mean(dim=0) - other.double().mean(dim=0))
        signs.append(1 if marks[first][0] else -1)
        shares.append(rows.sum() / len(names))
        words.append("/".join(pair))
    return QuestionEffects(torch.stack(effects), np.array(signs), np.array(shares), tuple(words))


def _unpaired(defecting: Sequence[bool], questions: Sequence[str], answers: Sequence[str]) -> str | None:
    """The first question that is not answered by two words, each as often, exactly one of them defecting."""
    counts: dict[str, Counter[tuple[str, bool]]] = {}
    for mark, name, word in zip(defecting, questions, answers, strict=True):
        counts.setdefault(name, Counter())[word, bool(mark)] += 1
    for name, found in counts.items():
        answered, marked = ({key[i] for key in found} for i in range(2))
        if not len(found) == len(answered) == len(marked) == 2 or len(set(found.values())) != 1:
            return name
    return None


def effects_of(contrast: Residuals) -> QuestionEffects:
    """Effects from captured contrast texts, whose prompts say `defecting`, `topic` (the question) and `answer`."""
    if any(not prompt.extra.keys() >= set(KEYS) for prompt in contrast.prompts):
        raise DefectionError(f"contrast texts must say {', '.join(KEYS)}, as those of a contrast set do")
    defecting, questions, answers = ([prompt.extra[key] for prompt in contrast.prompts] for key in KEYS)
    refuse_ragged(contrast)
    return question_effects(contrast.values, defecting, questions, answers)


def joined(parts: Sequence[QuestionEffects]) -> QuestionEffects:
    """The questions of several sets as one set, in which each question counts alike."""
    effects = torch.cat([part.effects for part in parts])
    signs = np.concatenate([part.signs for part in parts])
    words = tuple(word for part in parts for word in part.words)
    return QuestionEffects(effects, signs, np.full(len(signs), 1 / len(signs)), words)


def questions_of(estimator: LinearProbe, contrast: Residuals, clean: Residuals | None) -> QuestionEffects | None:
    """What each question adds to the direction that `estimator` makes of these texts, in its effect's stead.

    The direction is the sum of these, each with its question's sign and share: of every kind that is linear in its
    questions' effects (`LinearProbe.question_directions`). None for another kind, for texts that are not questions
    answered in both ways, and where the kind needs clean prompts and there are none.
    """
    if not has_questions(contrast) or (clean is None and Evidence.CLEAN in estimator.needs):
        return None
    found = effects_of(contrast)
    directions = estimator.question_directions(estimator.sample_of(contrast, clean), found.effects)
    return None if directions is None else replace(found, effects=directions)


def has_questions(contrast: Residuals) -> bool:
    """Whether the contrast texts say which question each belongs to, and answer each in both ways as often."""
    extras = [prompt.extra for prompt in contrast.prompts]
    if not extras or any(not extra.keys() >= set(KEYS) for extra in extras):
        return False
    defecting, questions, answers = ([extra[key] for extra in extras] for key in KEYS)
    return _unpaired(defecting, questions, answers) is None


@dataclass(frozen=True)
class QuestionNull:
    """AUROCs of the true labelling of the questions and of the null's, on one test set."""

    observed: Float[Tensor, "layer"]
    null: Float[Tensor, "layer draw"]
    """One draw is one labelling, the same at every layer."""
    band_observed: float
    """Of the mean standardised score over the fixed layers; NaN without them."""
    band_null: Float[Tensor, "draw"]

    @property
    def p_values(self) -> Float[Tensor, "layer"]:
        """One-sided, a layer."""
        return p_value(self.observed, self.null)

    @property
    def band_p_value(self) -> float:
        """One-sided, for the fixed layers together."""
        return float(p_value(self.band_observed, self.band_null))


def label_shuffle_null(
    questions: QuestionEffects,
    tests: Float[Tensor, "prompt layer d_model"],
    labels: Labels,
    clean: Float[Tensor, "clean layer d_model"],
    *,
    columns: Sequence[int] = (),
    each_layer: bool = True,
    count: int = DIRECTIONS,
    seed: int = 0,
) -> QuestionNull:
    """The mean-difference probe against itself with the labels of whole questions shuffled.

    A small p-value says that *which* answer counts as defecting matters, on this organism and these prompts. It
    respects norms and the contrast texts' own covariance, where isotropic directions do not. The p-value cannot fall
    below one over the number of distinct labellings: 1/20 for six questions.

    Args:
        questions: What each question's answer does to the residual.
        tests: Residuals of the test prompts.
        labels: [prompt] whether each defected.
        clean: Residuals of clean prompts, which say what an ordinary score is at a layer.
        columns: The fixed layers, as columns of `tests`; without any there is no figure for them together.
        each_layer: Whether every layer is looked at by itself too.
        count: Labellings drawn.
        seed: Of the draw.

    Examples:
        >>> null = label_shuffle_null(questions, tests, labels, clean, columns=(1, 2))  # doctest: +SKIP
    """
    return _null(questions, questions, questions.shuffled(count, seed), tests, labels, clean, columns, each_layer)


def unrelated_question_null(
    questions: QuestionEffects,
    unrelated: QuestionEffects,
    tests: Float[Tensor, "prompt layer d_model"],
    labels: Labels,
    clean: Float[Tensor, "clean layer d_model"],
    *,
    columns: Sequence[int] = (),
    each_layer: bool = True,
    count: int = DIRECTIONS,
    seed: int = 0,
) -> QuestionNull:
    """The same probe against mean differences of as many *unrelated* questions, with random balanced signs.

    Give questions about anything but the model itself: obvious truths, say. What their directions reach is what asking
    any questions at all reaches. Where there are fewer of them all are used, and the null is a little wider for it.
    """
    drawn = unrelated.subsets(min(len(questions), len(unrelated)), count, seed)
    return _null(questions, unrelated, drawn, tests, labels, clean, columns, each_layer)


def _null(
    questions: QuestionEffects,
    others: QuestionEffects,
    drawn: NDArray[np.int64],
    tests: Tensor,
    labels: Labels,
    clean: Tensor,
    columns: Sequence[int],
    each_layer: bool,
) -> QuestionNull:
    def single(source: QuestionEffects, weights: Tensor) -> Tensor:
        # A labelling's score is the same weighted sum of its questions' scores as its direction is of their effects.
        if not each_layer:
            return torch.empty(0, len(weights), dtype=torch.float64)
        by_question = torch.einsum("qld,pld->lqp", source.effects.to(tests).float(), tests.float())
        return auroc(torch.einsum("kq,lqp->lkp", weights.to(tests).float(), by_question), labels, axis=-1)

    def band(source: QuestionEffects, weights: Tensor) -> Tensor:
        if not columns:
            return torch.full((len(weights),), torch.nan, dtype=torch.float64)
        chosen = list(columns)
        marks = class_marks(labels, len(tests)).numpy()
        trial = Trial(tests[:, chosen], clean[:, chosen].to(tests.device), marks, (ONE_FAMILY,) * len(tests))
        return question_null(trial, source.effects[:, chosen], weights)

    given = (questions, questions.weights(questions.signs[None])), (others, others.weights(drawn))
    (observed, null), (band_observed, band_null) = ([of(*each) for each in given] for of in (single, band))
    return QuestionNull(observed[:, 0], null, float(band_observed[0]), band_null)


def question_p_values(
    trial: Trial,
    observed: float,
    turned: Float[Tensor, "draw"],
    questions: QuestionEffects | None,
    unrelated: QuestionEffects | None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, float | None]:
    """One-sided p-values of a question probe's mean AUROC on a trial, under the three nulls of `randomisation`.

    `observed` is the probe's mean AUROC and `turned` that of its directions turned at random (`turned_null`).
    `questions` and `unrelated` are `questions_of` its own texts and of others put the same way, at the same layers;
    where there are none, or their labels cannot be dealt anew, that null's p-value is None.
    """
    chance = float(p_value(observed, turned))
    found: dict[str, float | None] = {"random": chance, "label_shuffle": None, "unrelated": None}
    if questions is None:
        return found
    own = float(question_null(trial, questions.effects, questions.weights(questions.signs[None]))[0])
    if questions.can_be_shuffled:
        weights = questions.weights(questions.shuffled(draws, seed))
        found["label_shuffle"] = float(p_value(own, question_null(trial, questions.effects, weights)))
    if unrelated is not None:
        weights = unrelated.weights(unrelated.subsets(min(len(questions), len(unrelated)), draws, seed))
        found["unrelated"] = float(p_value(own, question_null(trial, unrelated.effects, weights)))
    return found
