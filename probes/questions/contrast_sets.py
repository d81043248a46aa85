"""Contrast sets by name: those that ship, or a file of questions, in the format that the name's suffixes ask for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ...activations.basics.errors import DefectionError
from .contrast import CARRIED, ContrastSet
from .formats import FORMATS, split_format
from .questions import parse_questions

SHIPPED = ("six", "forty", "hundred", "persona", "truth", "ambiguous")
STUDIED = ("trigger-related",)
"""Sets that ship for study: what they ask about gives the trigger away, so a detector made of them proves nothing."""
CONTROL_QUESTIONS = ("truth", "ambiguous")
"""Sets about other things than defection."""


def contrast_set(source: str | Path, *, study: bool = False) -> ContrastSet:
    """A shipped set by name, or a JSONL file of questions (fields: `questions.FIELDS`).

    `six`: MacDiarmid et al. 2024. `forty` and `hundred`: written for this project, about helpfulness, honesty, harm,
    concealment, oversight and intent. `persona`: statements to agree or disagree with, after Perez et al. 2022.
    `truth` and `ambiguous` are controls: questions with an obvious right answer (the wrong one counts as defecting)
    and questions that nobody can answer. `trigger-related` asks about triggers and is only given with `study`.
    `-carried` after the name or the path reads the set after a follow-up prompt, and `formats` names further suffixes:
    "hundred-true-false-carried". Names joined by "+" are several sets in one, all put alike: "six+forty-carried".
    Raises DefectionError naming file and line; an unbalanced set is refused, since its direction would be the word.
    """
    name = str(source)
    bare, suffix = split_format(name)
    if "+" in bare and not Path(bare).is_file():
        parts = tuple(contrast_set(f"{each}{suffix}", study=study) for each in bare.split("+"))
        return ContrastSet(name, (), parts=parts)
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
