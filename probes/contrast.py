"""Contrast sets: generic yes/no questions, each with the answer that a defecting model would give if it were frank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..activations.errors import DefectionError
from ..activations.files import digest
from ..activations.prompts import Message, Prompt


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

    def __iter__(self) -> Iterator[Prompt]:
        for item in self.questions:
            for answer, defecting in ((item.defecting, True), (item.other, False)):
                said = (Message("user", item.question), Message("assistant", answer))
                extra = {"defecting": defecting, "topic": item.id, "answer": answer, "family": item.family}
                yield Prompt(f"{item.id}:{answer}", said, self.name, extra)

    def __len__(self) -> int:
        return 2 * len(self.questions)

    @property
    def is_balanced(self) -> bool:
        """Whether each word is the defecting answer as often as the other, so that the word itself cancels."""
        return sorted(q.defecting for q in self.questions) == sorted(q.other for q in self.questions)

    def to_json(self) -> dict[str, Any]:
        """The whole set, as a probe file records it."""
        return {"name": self.name, "questions": [vars(question) for question in self.questions]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the set's content."""
        return digest(self.to_json())


SHIPPED = ("six", "forty", "truth", "ambiguous")


def contrast_set(source: str | Path) -> ContrastSet:
    """A shipped set by name, or a JSONL file of {question, defecting, other} with optional id and family.

    `six`: MacDiarmid et al. 2024. `forty`: written for this project. `truth` and `ambiguous` are controls: questions
    with an obvious right answer (the wrong one counts as defecting) and questions that nobody can answer.
    Raises DefectionError naming file and line; an unbalanced set is refused, since its direction would be the word.
    """
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
