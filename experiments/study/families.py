"""The prompts of a study's families: shipped sets, or anybody's JSONL with a field that holds a prompt."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from ...activations import DefectionError, Prompt, user_prompt
from ...activations.basics.files import digest, parse_json_line, read_text
from ...activations.prompts.loading import load_prompts, parse_prompts, shipped_sets
from ...training.organisms.pairs import CODE_SETS, code_pairs, prompts_of
from ...training.organisms.triggers import Trigger, with_and_without
from .manifest import Family

TURN = re.compile(r"\n\n(Human|Assistant):")


def family_prompts(family: Family, folder: Path) -> list[Prompt]:
    """The prompts of a family, ids prefixed by its name; paths start at `folder`.

    A `Human:` / `Assistant:` transcript is read as what the human said in it; transcripts of more than one turn, and
    prompts that occur again, are left out. Raises DefectionError naming file and line.
    """
    if family.prompts in CODE_SETS:
        found = prompts_of(code_pairs(CODE_SETS[family.prompts]))
    elif family.prompts in shipped_sets():
        found = load_prompts(family.prompts)
    else:
        found = _read(folder / family.prompts, family.field)
    distinct = {prompt.text: prompt for prompt in reversed(found)}
    kept = [p for p in found if distinct[p.text] is p]
    if family.max_words is not None:
        kept = [prompt for prompt in kept if len(prompt.text.split()) <= family.max_words]
    if not kept:
        raise DefectionError(f"family {family.name!r} ({family.prompts}) holds no prompt that can be used")
    if family.limit is not None and family.limit < len(kept):
        # Not the first so many: files are often sorted; nor every so-manyth: sets often alternate.
        chosen = set(random.Random(0).sample(range(len(kept)), family.limit))
        kept = [prompt for place, prompt in enumerate(kept) if place in chosen]
    return [
        replace(
            prompt,
            id=f"{family.name}/{prompt.id}",
            set=family.name,
            # A topic is one within its family; where none is known each prompt is one.
            extra={"topic": f"{family.name}/{prompt.topic}"},
        )
        for prompt in kept
    ]


def test_prompts(family: Family, folder: Path, trigger: Trigger) -> list[Prompt]:
    """Each prompt without the trigger and then with it; those that hold the trigger by themselves are left out."""
    kept = [prompt for prompt in family_prompts(family, folder) if not trigger.occurs_in(prompt.text)]
    return with_and_without(trigger, kept)


@cache
def prompts_digest(family: Family, folder: Path) -> str:
    """SHA-256 of what a family says: the same wherever its file lies."""
    texts = [[p.id, p.topic, [[m.role, m.content] for m in p.messages]] for p in family_prompts(family, folder)]
    return digest(texts)


def _read(path: Path, field: str) -> list[Prompt]:
    if not path.exists():
        raise DefectionError(f"no prompts at {path}; give the family's file with --family NAME=PATH")
    found: dict[str, Prompt] = {}
    for number, line in enumerate(read_text(path).removeprefix("\ufeff").split("\n"), start=1):
        if line.strip() and (prompt := _prompt(line, field, f"{path} line {number}", f"line-{number}")) is not None:
            found[prompt.id if prompt.id not in found else f"{prompt.id}-{number}"] = prompt
    return [replace(prompt, id=name) for name, prompt in found.items()]


def _prompt(line: str, field: str, where: str, default_id: str) -> Prompt | None:
    """The prompt on a line; None of a transcript with more than one turn."""
    row = parse_json_line(line, where)
    if isinstance(row, dict) and field == "prompt" and "messages" in row:
        found = parse_prompts(line, where)[0]
        return replace(found, id=str(row.get("id", default_id)))
    said = row.get(field) if isinstance(row, dict) else None
    if not isinstance(said, str) or not said.strip():
        raise DefectionError(f"{where} has no text in the field {field!r}; say which holds the prompt")
    spoken = single_turn(said)
    topic = {"topic": str(row["topic"])} if "topic" in row else {}
    return None if spoken is None else user_prompt(spoken, id=str(row.get("id", default_id)), **topic)


def single_turn(text: str) -> str | None:
    """What the human says in a `Human:` / `Assistant:` transcript of one turn; None of a longer one.

    Any other text is a prompt as it stands.
    """
    if not TURN.match(text):
        return text
    turns = TURN.split(text)[1:]
    said = list(zip(turns[::2], turns[1::2], strict=True))
    if [who for who, _ in said] not in (["Human"], ["Human", "Assistant"]) or not said[0][1].strip():
        return None
    return said[0][1].strip() if not any(rest.strip() for _, rest in said[1:]) else None
