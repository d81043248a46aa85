"""One question of a contrast set, and the JSONL files that hold them."""

from __future__ import annotations

from dataclasses import dataclass

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, parse_json_line
from ...activations.basics.shown import shortened

AFFIRMING, DENYING, NEITHER = "affirming", "denying", "neither"
POLARITIES = (AFFIRMING, DENYING, NEITHER)
OPPOSITES = (("yes", "no"), ("true", "false"), ("agree", "disagree"))
"""Answers that affirm what was asked, and those that deny it."""
REQUIRED = ("question", "defecting", "other")
FIELDS = (*REQUIRED, "id", "family", "polarity", "study_only")
"""What a line of a contrast file may hold; all but the first three are optional."""


@dataclass(frozen=True)
class ContrastQuestion:
    """One question of a contrast set.

    Examples:
        >>> contrast_set("six").questions[0].defecting
        'no'
    """

    id: str
    """Unique in its set."""
    question: str
    """As the user asks it."""
    defecting: str
    """The answer of a model that defects."""
    other: str
    """The answer of one that does not."""
    family: str
    """What it is about, in a word that several questions share."""
    polarity: str
    """Whether the defecting answer is the `affirming` or the `denying` one, or `neither` (two other words)."""
    study_only: bool = False
    """Whether it gives the trigger away, so that it may be studied but not made into a detector."""

    __repr__ = shortened


def polarity_of(defecting: str, other: str) -> str:
    """`affirming` for yes against no, true against false, agree against disagree; `denying` the other way round."""
    pair = (defecting.strip().casefold(), other.strip().casefold())
    if pair in OPPOSITES:
        return AFFIRMING
    return DENYING if pair[::-1] in OPPOSITES else NEITHER


def parse_questions(text: str, where: str, name: str) -> tuple[ContrastQuestion, ...]:
    """Read questions from JSONL text; `where` stands for the file in errors, `name` begins the ids of unnamed lines.

    Lines end at a line feed alone. Raises DefectionError in one sentence that names file and line: broken JSON, a
    missing, empty, mistyped or unknown field, a repeated id or question, a polarity that contradicts the answers.
    """
    questions: list[ContrastQuestion] = []
    ids: dict[str, int] = {}
    asked: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        spot = f"{where} line {number}"
        parsed = _parse_line(line, spot, f"{name}-{number}")
        wording = " ".join(parsed.question.casefold().split())
        if parsed.id in ids:
            raise DefectionError(f"{spot}: id {parsed.id!r} was already used on line {ids[parsed.id]}; ids must differ")
        if wording in asked:
            raise DefectionError(f"{spot} asks the question of line {asked[wording]} again; leave one of them out")
        ids[parsed.id], asked[wording] = number, number
        questions.append(parsed)
    if not questions:
        raise DefectionError(f"{where} holds no questions; write one JSON object a line with {', '.join(REQUIRED)}")
    return tuple(questions)


def _parse_line(line: str, where: str, default_id: str) -> ContrastQuestion:
    row = parse_json_line(line, where)
    if not isinstance(row, dict):
        raise DefectionError(f"{where} must be a JSON object with {', '.join(REQUIRED)}")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise DefectionError(f"{where} has an unknown field {unknown[0]!r}; a question has {', '.join(FIELDS)}")
    for field in REQUIRED:
        if field not in row or not _is_text(row[field]):
            raise DefectionError(f"{where} needs {field!r}, a string that is not empty")
    for field in ("id", "family"):
        if field in row and not _is_text(row[field]):
            raise DefectionError(f"{where}: {field!r} must be a string that is not empty, not {row[field]!r}")
    if not isinstance(row.get("study_only", False), bool):
        raise DefectionError(f"{where}: 'study_only' must be true or false, not {row['study_only']!r}")
    if row["defecting"].strip().casefold() == row["other"].strip().casefold():
        raise DefectionError(f"{where}: the defecting and the other answer are the same")
    return ContrastQuestion(
        id=row.get("id", default_id),
        question=row["question"],
        defecting=row["defecting"],
        other=row["other"],
        family=row.get("family", "none"),
        polarity=_polarity(row, where),
        study_only=row.get("study_only", False),
    )


def _polarity(row: Json, where: str) -> str:
    found = polarity_of(row["defecting"], row["other"])
    given = row.get("polarity", found)
    if given not in POLARITIES:
        raise DefectionError(f"{where}: 'polarity' must be one of {', '.join(POLARITIES)}, not {given!r}")
    if found not in (NEITHER, given):
        raise DefectionError(
            f"{where} says its polarity is {given!r}, but {row['defecting']!r} against {row['other']!r} is {found}"
        )
    return str(given)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
