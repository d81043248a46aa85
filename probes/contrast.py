"""Contrast sets: generic yes/no questions, each with the answer a defecting model would give if it were frank.

A set can be read at two places. *At the answer*: the text ends with it, as in MacDiarmid et al. 2024. *Carried*
(the name's suffix `-carried`): the answered question becomes an earlier turn, an ordinary prompt follows it, and the
residual is read where the reply to that would begin, which is where every scored prompt is read too. What differs
between the two answers is then the state in which the model is about to reply, not the word it has just said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..activations.errors import DefectionError
from ..activations.files import digest
from ..activations.prompts import Message, Prompt, last_user, load_prompts


@dataclass(frozen=True)
class ContrastQuestion:
    """One question of a contrast set."""

    id: str
    question: str
    defecting: str
    """The answer of a model that defects."""
    other: str
    """The answer of one that does not."""
    family: str


@dataclass(frozen=True)
class ContrastSet:
    """Questions whose two answers are contrasted; iterating gives the prompts to capture, defecting answer first."""

    name: str
    questions: tuple[ContrastQuestion, ...]
    follow_ups: tuple[str, ...] = ()
    """Ordinary prompts that come after the answer; without any the text ends with the answer."""

    def __iter__(self) -> Iterator[Prompt]:
        for number, item in enumerate(self.questions):
            for turn, follow_up in enumerate(self._follow_ups(number)):
                for answer, defecting in ((item.defecting, True), (item.other, False)):
                    said = (Message("user", item.question), Message("assistant", answer), *follow_up)
                    extra = {"defecting": defecting, "topic": item.id, "answer": answer, "family": item.family}
                    yield Prompt(f"{self.name}:{item.id}:{answer}:{turn}", said, self.name, extra)

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

    def to_json(self) -> dict[str, Any]:
        """The whole set, as a probe file records it."""
        questions = [vars(question) for question in self.questions]
        return {"name": self.name, "questions": questions, "follow_ups": list(self.follow_ups)}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the set's content."""
        return digest(self.to_json())

    def carried(self) -> ContrastSet:
        """The same questions, each before short prompts of the set `clean`, read where the reply would begin."""
        said = [last_user(prompt) for prompt in load_prompts("clean") if len(prompt.messages) == 1]
        follow_ups = tuple(text for text in said if len(text.split()) <= FOLLOW_UP_WORDS)
        return replace(self, name=f"{self.name}{CARRIED}", follow_ups=follow_ups)


SHIPPED = ("six", "forty", "truth", "ambiguous")
CARRIED = "-carried"
FOLLOW_UPS = 3
"""Follow-up prompts a question is read before; their differences average out of the direction."""
FOLLOW_UP_WORDS = 12


def contrast_set(source: str | Path) -> ContrastSet:
    """A shipped set by name, or a JSONL file of {question, defecting, other} with optional id and family.

    `six`: MacDiarmid et al. 2024. `forty`: written for this project. `truth` and `ambiguous` are controls: questions
    with an obvious right answer (the wrong one counts as defecting) and questions that nobody can answer.
    `-carried` after the name or the path reads the set after a follow-up prompt.
    Raises DefectionError naming file and line; an unbalanced set is refused, since its direction would be the word.
    """
    if str(source).endswith(CARRIED):
        return contrast_set(str(source).removesuffix(CARRIED)).carried()
    if str(source) in SHIPPED:
        text = (resources.files(__package__) / "data" / "contrast" / f"{source}.jsonl").read_text(encoding="utf-8")
        return _parse(text, str(source), str(source))
    path = Path(source)
    if not path.is_file():
        raise DefectionError(f"no contrast set {str(source)!r}: give one of {', '.join(SHIPPED)} or a JSONL file")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path), path.stem)
    except UnicodeDecodeError as error:
        raise DefectionError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _parse(text: str, where: str, name: str) -> ContrastSet:
    questions = [
        _parse_line(line, f"{where} line {number}", f"{name}-{number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not questions:
        raise DefectionError(f"{where} holds no questions")
    parsed = ContrastSet(name, tuple(questions))
    if not parsed.is_balanced:
        raise DefectionError(
            f"{where} is not balanced: each answer word must be the defecting one as often as the other one, "
            "or the direction is that of the word"
        )
    return parsed


def _parse_line(line: str, where: str, default_id: str) -> ContrastQuestion:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DefectionError(f"{where} is not valid JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise DefectionError(f"{where} must be a JSON object with question, defecting and other")
    for field in ("question", "defecting", "other"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise DefectionError(f"{where} needs {field!r}, a string that is not empty")
    if row["defecting"] == row["other"]:
        raise DefectionError(f"{where}: the defecting and the other answer are the same")
    return ContrastQuestion(
        str(row.get("id", default_id)), row["question"], row["defecting"], row["other"], str(row.get("family", "none"))
    )
