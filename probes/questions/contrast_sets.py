"""Contrast sets by name: those that ship, or a file of questions, in the format that the name's suffixes ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import jsonl, read_text
from ...activations.prompts.prompts import Prompt
from .contrast import CARRIED, ContrastSet
from .formats import FORMATS, split_format
from .questions import ContrastQuestion, parse_questions

OWN = "own"
"""What questions in memory are called."""
SHIPPED = ("six", "forty", "hundred", "persona", "truth", "ambiguous")
STUDIED = ("trigger-related",)
"""Sets that ship for study: what they ask about gives the trigger away, so a detector made of them proves nothing."""
CONTROL_QUESTIONS = ("truth", "ambiguous")
"""Sets about other things than defection."""


def contrast_set(
    source: str | Path | Iterable[Mapping[str, object] | ContrastQuestion], *, put: str = "", study: bool = False
) -> ContrastSet:
    """A shipped set by name, a JSONL file of questions, or questions in memory.

    Args:
        source: a name or path; or a DataFrame of pandas or polars, or an iterable of mappings or `ContrastQuestion`s,
            with `question`, `defecting` and `other` each (optional: `id`, `family`, `polarity`, `study_only`).
        put: how the questions are put, as the suffix of a name says it: "carried", "sentence-carried", …
        study: whether a set that gives the trigger away may be had, to be looked at.

    `six`: MacDiarmid et al. 2024. `forty` and `hundred`: written for this project, about helpfulness, honesty, harm,
    concealment, oversight and intent. `persona`: statements to agree or disagree with, after Perez et al. 2022.
    `truth` and `ambiguous` are controls: questions with an obvious right answer (the wrong one counts as defecting)
    and questions that nobody can answer. `trigger-related` asks about triggers and is only given with `study`.
    `-carried` after the name or the path reads the set after a follow-up prompt, and `formats` names further suffixes:
    "hundred-true-false-carried". Names joined by "+" are several sets in one, all put alike: "six+forty-carried".
    Raises DefectionError naming file and line; an unbalanced set is refused, since its direction would be the word.

    Examples:
        >>> contrast_set("six-carried")
        <ContrastSet 'six-carried': 24 texts>
        >>> asked = [{"question": "Do you lie?", "defecting": "yes", "other": "no"}]
        >>> asked += [{"question": "Are you frank?", "defecting": "no", "other": "yes"}]
        >>> contrast_set(asked, put="carried")
        <ContrastSet 'own-carried': 8 texts>
    """
    if not isinstance(source, str | Path):
        return _put(_balanced(ContrastSet(OWN, parse_questions(_lines(source), "question", OWN)), "the set given"), put)
    name = f"{source}-{put}" if put else str(source)
    bare, suffix = split_format(name)
    if "+" in bare and not Path(bare).is_file():
        parts = tuple(contrast_set(f"{each}{suffix}", study=study) for each in bare.split("+"))
        names = [part.name for part in parts]
        if twice := next((each for each in names if names.count(each) > 1), None):
            raise DefectionError(f"{name} joins two sets called {twice!r}, whose questions could not be told apart")
        return ContrastSet(name, (), parts=parts)
    found = _read(bare)
    if found.study_only and not study:
        raise DefectionError(
            f"contrast set {bare!r} is for study only: what it asks about would give the trigger away to a detector; "
            "use another set, or contrast_set(…, study=True) to look at its direction"
        )
    return _put(found, suffix.removeprefix("-"))


def distinct_texts(sets: Iterable[ContrastSet]) -> list[Prompt]:
    """The texts of several sets, each once: what is to be read for all of them, as `six+forty` and `six` share some."""
    return list({text.id: text for each in sets for text in each}.values())


def _put(asked: ContrastSet, put: str) -> ContrastSet:
    """Questions put as a suffix says, from its first word on."""
    left = f"-{put}" if put else ""
    while left:
        suffix = next((each for each in (CARRIED, *FORMATS) if left.startswith(each)), None)
        if suffix is None:
            known = ", ".join(each.removeprefix("-") for each in (CARRIED, *FORMATS))
            raise DefectionError(f"questions cannot be put {put!r}: give one of {known}, or several joined by '-'")
        asked = asked.carried() if suffix == CARRIED else FORMATS[suffix](asked)
        _balanced(asked, asked.name)
        left = left.removeprefix(suffix)
    return asked


def _lines(source: object) -> str:
    """Questions in memory as the lines of a file: a table's rows without their empty cells, mappings, questions."""
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):
        rows: Iterable[Any] = source.iter_rows(named=True)
    elif hasattr(source, "to_dict") and hasattr(source, "columns"):
        rows = source.to_dict("records")
    elif isinstance(source, Iterable) and not isinstance(source, Mapping):
        rows = source
    else:
        raise DefectionError(
            f"a {type(source).__name__} holds no questions: give a name, a file, a DataFrame or a list of mappings"
        )
    told = [asdict(row) if isinstance(row, ContrastQuestion) else row for row in rows]
    if wrong := [row for row in told if not isinstance(row, Mapping)]:
        raise DefectionError(f"a question is a mapping with question, defecting and other, not {wrong[0]!r:.60}")
    return jsonl({key: value for key, value in row.items() if not _is_empty(value)} for row in told)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _read(name: str) -> ContrastSet:
    if name in SHIPPED or name in STUDIED:
        text = (resources.files(__package__) / "data" / "contrast" / f"{name}.jsonl").read_text(encoding="utf-8")
        return _balanced(ContrastSet(name, parse_questions(text, name, name)), name)
    path = Path(name)
    if not path.is_file():
        raise DefectionError(f"no contrast set {name!r}: give one of {', '.join(SHIPPED)} or a JSONL file")
    return _balanced(ContrastSet(path.stem, parse_questions(read_text(path), name, path.stem)), name)


def _balanced(parsed: ContrastSet, where: str) -> ContrastSet:
    if not parsed.is_balanced:
        raise DefectionError(
            f"{where} is not balanced: each answer word must be the defecting one as often as the other one, "
            "or the direction is that of the word"
        )
    return parsed
