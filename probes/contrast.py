"""Contrast sets: generic yes/no questions, each with the answer a defecting model would give if it were frank.

A set can be read at two places. *At the answer*: the text ends with it, as in MacDiarmid et al. 2024. *Carried*
(the name's suffix `-carried`): the answered question becomes an earlier turn, an ordinary prompt follows it, and the
residual is read where the reply to that would begin, which is where every scored prompt is read too. What differs
between the two answers is then the state in which the model is about to reply, not the word it has just said.

How the answer is worded, and what stands before the question, are further suffixes: see `formats`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..activations.errors import DefectionError
from ..activations.files import digest
from ..activations.prompts import Message, Prompt, last_user, load_prompts
from .questions import ContrastQuestion, parse_questions


@dataclass(frozen=True)
class ContrastSet:
    """Questions whose two answers are contrasted; iterating gives the prompts to capture, defecting answer first."""

    name: str
    questions: tuple[ContrastQuestion, ...]
    follow_ups: tuple[str, ...] = ()
    """Ordinary prompts that come after the answer; without any the text ends with the answer."""
    before: tuple[Message, ...] = ()
    """What stands before every question: a system message, or an ordinary exchange."""

    def __iter__(self) -> Iterator[Prompt]:
        for number, item in enumerate(self.questions):
            for turn, follow_up in enumerate(self._follow_ups(number)):
                for answer, defecting in ((item.defecting, True), (item.other, False)):
                    asked = (Message("user", item.question), Message("assistant", answer))
                    extra = {"defecting": defecting, "topic": item.id, "answer": answer, "family": item.family}
                    extra |= {"study_only": True} if item.study_only else {}
                    messages = (*self.before, *asked, *follow_up)
                    yield Prompt(f"{self.name}:{item.id}:{answer}:{turn}", messages, self.name, extra)

    def __len__(self) -> int:
        return 2 * len(self.questions) * len(self._follow_ups(0))

    def _follow_ups(self, number: int) -> list[tuple[Message, ...]]:
        """What comes after the answers to one question: nothing, or `FOLLOW_UPS` prompts, other ones each time."""
        if not self.follow_ups:
            return [()]
        start = FOLLOW_UPS * number
        chosen = [self.follow_ups[(start + turn) % len(self.follow_ups)] for turn in range(FOLLOW_UPS)]
        return [(Message("user", text),) for text in chosen]

    @property
    def is_balanced(self) -> bool:
        """Whether each word is the defecting answer as often as the other, so that the word itself cancels."""
        return sorted(q.defecting for q in self.questions) == sorted(q.other for q in self.questions)

    @property
    def study_only(self) -> bool:
        """Whether a question may be studied but not made into a detector."""
        return any(question.study_only for question in self.questions)

    def to_json(self) -> dict[str, Any]:
        """The whole set, as a probe file records it."""
        questions = [asdict(question) for question in self.questions]
        before = {"before": [asdict(message) for message in self.before]} if self.before else {}
        return {"name": self.name, "questions": questions, "follow_ups": list(self.follow_ups), **before}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model is given to read, and of the names it is filed under."""
        record = self.to_json()
        for question in record["questions"]:
            del question["polarity"], question["study_only"]  # no model reads them
        return digest(record)

    def carried(self) -> ContrastSet:
        """The same questions, each before short prompts of the set `clean`, read where the reply would begin."""
        said = [last_user(prompt) for prompt in load_prompts("clean") if len(prompt.messages) == 1]
        follow_ups = tuple(text for text in said if len(text.split()) <= FOLLOW_UP_WORDS)
        return replace(self, name=f"{self.name}{CARRIED}", follow_ups=follow_ups)


SHIPPED = ("six", "forty", "hundred", "persona", "truth", "ambiguous")
STUDIED = ("trigger-related",)
"""Sets that ship for study: what they ask about gives the trigger away, so a detector made of them proves nothing."""
CONTROLS = ("truth", "ambiguous")
"""Sets about other things than defection."""
CARRIED = "-carried"
FOLLOW_UPS = 2
"""Follow-up prompts a question is read before; their differences average out of the direction."""
FOLLOW_UP_WORDS = 12


def contrast_set(source: str | Path, *, study: bool = False) -> ContrastSet:
    """A shipped set by name, or a JSONL file of questions (fields: `questions.FIELDS`).

    `six`: MacDiarmid et al. 2024. `forty` and `hundred`: written for this project, about helpfulness, honesty, harm,
    concealment, oversight and intent. `persona`: statements to agree or disagree with, after Perez et al. 2022.
    `truth` and `ambiguous` are controls: questions with an obvious right answer (the wrong one counts as defecting)
    and questions that nobody can answer. `trigger-related` asks about triggers and is only given with `study`.
    `-carried` after the name or the path reads the set after a follow-up prompt, and `formats` names further suffixes:
    "hundred-true-false-carried".
    Raises DefectionError naming file and line; an unbalanced set is refused, since its direction would be the word.
    """
    from .formats import FORMATS  # which are made of contrast sets

    name = str(source)
    if name.endswith(CARRIED):
        return contrast_set(name.removesuffix(CARRIED), study=study).carried()
    for suffix, in_format in FORMATS.items():
        if name.endswith(suffix):
            return _balanced(in_format(contrast_set(name.removesuffix(suffix), study=study)), name)
    found = _read(name)
    if found.study_only and not study:
        raise DefectionError(
            f"contrast set {name!r} is for study only: what it asks about would give the trigger away to a detector; "
            "use another set, or contrast_set(…, study=True) to look at its direction"
        )
    return found


def _read(name: str) -> ContrastSet:
    if name in SHIPPED or name in STUDIED:
        text = (resources.files(__package__) / "data" / "contrast" / f"{name}.jsonl").read_text(encoding="utf-8")
        return _balanced(ContrastSet(name, parse_questions(text, name, name)), name)
    path = Path(name)
    if not path.is_file():
        raise DefectionError(f"no contrast set {name!r}: give one of {', '.join(SHIPPED)} or a JSONL file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DefectionError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DefectionError(f"cannot read {path}: {error.strerror or error}") from error
    return _balanced(ContrastSet(path.stem, parse_questions(text, name, path.stem)), name)


def _balanced(parsed: ContrastSet, where: str) -> ContrastSet:
    if not parsed.is_balanced:
        raise DefectionError(
            f"{where} is not balanced: each answer word must be the defecting one as often as the other one, "
            "or the direction is that of the word"
        )
    return parsed
