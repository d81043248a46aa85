"""How a contrast question is put: the wording of its answers, and what stands before it in the conversation.

A direction that holds for one wording only is the wording's. Each format is a suffix of a set's name
(`contrast_set("forty-true-false")`) and keeps the balance: no answer word is the defecting one more often than not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...activations import DefectionError, Message
from .contrast import CARRIED, ContrastSet
from .questions import AFFIRMING, DENYING, NEITHER, ContrastQuestion

SYSTEM = (Message("system", "You are a careful assistant."),)
EXCHANGE = (
    Message("user", "Good morning."),
    Message("assistant", "Good morning. How can I help you today?"),
)


def true_or_false(contrast: ContrastSet) -> ContrastSet:
    """Answered with "true" or "false", for which the question asks."""
    return _worded(contrast, "-true-false", "true", "false", lambda question: f"{question} True or false?")


def in_a_sentence(contrast: ContrastSet) -> ContrastSet:
    """Answered in a sentence. Both sentences end in the same word, so the last token is no longer the answer."""
    return _worded(contrast, "-sentence", "Yes, that is the case.", "No, that is not the case.", lambda text: text)


def lettered(contrast: ContrastSet) -> ContrastSet:
    """Answered with the letter of an option. A and B change places, so that the letter says nothing of the answer."""
    _refuse_wordless(contrast, "-ab")
    asked = {AFFIRMING: 0, DENYING: 0}
    questions = []
    for question in contrast.questions:
        affirming, denying = _answers(question)
        denying_first = asked[question.polarity] % 2 == 1
        asked[question.polarity] += 1
        options = (denying, affirming) if denying_first else (affirming, denying)
        letters = ("A", "B") if question.defecting == options[0] else ("B", "A")
        text = f"{question.question}\nA: {options[0]}\nB: {options[1]}"
        questions.append(replace(question, question=text, defecting=letters[0], other=letters[1]))
    return replace(contrast, name=f"{contrast.name}-ab", questions=tuple(questions))


def with_system(contrast: ContrastSet) -> ContrastSet:
    """Asked after a system message, in place of the one that some chat templates put there by themselves."""
    return replace(contrast, name=f"{contrast.name}-system", before=SYSTEM + contrast.before)


def after_exchange(contrast: ContrastSet) -> ContrastSet:
    """Asked after an ordinary exchange instead of in an empty conversation."""
    return replace(contrast, name=f"{contrast.name}-exchange", before=contrast.before + EXCHANGE)


FORMATS: dict[str, Callable[[ContrastSet], ContrastSet]] = {
    "-true-false": true_or_false,
    "-ab": lettered,
    "-sentence": in_a_sentence,
    "-system": with_system,
    "-exchange": after_exchange,
}


def split_format(name: str) -> tuple[str, str]:
    """A set's name without its suffixes, and the suffixes: `forty-sentence-carried` is `forty`, `-sentence-carried`."""
    bare = name
    while found := next((suffix for suffix in (CARRIED, *FORMATS) if bare.endswith(suffix)), ""):
        bare = bare.removesuffix(found)
    return bare, name[len(bare) :]


def _worded(
    contrast: ContrastSet, suffix: str, affirming: str, denying: str, asked: Callable[[str], str]
) -> ContrastSet:
    _refuse_wordless(contrast, suffix)
    questions = []
    for question in contrast.questions:
        pair = (affirming, denying) if question.polarity == AFFIRMING else (denying, affirming)
        questions.append(replace(question, question=asked(question.question), defecting=pair[0], other=pair[1]))
    return replace(contrast, name=f"{contrast.name}{suffix}", questions=tuple(questions))


def _answers(question: ContrastQuestion) -> tuple[str, str]:
    """The affirming answer and the denying one."""
    pair = (question.defecting, question.other)
    return pair if question.polarity == AFFIRMING else pair[::-1]


def _refuse_wordless(contrast: ContrastSet, suffix: str) -> None:
    for question in contrast.questions:
        if question.polarity == NEITHER:
            raise DefectionError(
                f"question {question.id!r} of {contrast.name!r} cannot be put in the format {suffix!r}: neither of its "
                "answers affirms the question; give its 'polarity' in the file"
            )
