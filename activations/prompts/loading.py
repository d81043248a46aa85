"""The door for prompts: whatever people hold them in becomes a list of `Prompt`s. Every function that takes prompts
takes what `load_prompts` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from itertools import count
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..basics.errors import DefectionError, printable
from .prompts import Message, Prompt, said_id
from .shapes import SHAPES, is_message, prompt_of
from .tables import HUB, Rows, file_rows, json_lines, table_rows

if TYPE_CHECKING:
    from .rendered import Rendered

PromptLike: TypeAlias = "Prompt | Rendered | str | Mapping[str, object] | Sequence[Message | Mapping[str, object]]"
"""One prompt: a text, a conversation, a row of a data set (`shapes`)."""
PromptsLike: TypeAlias = "str | PathLike[str] | PromptLike | Iterable[PromptLike]"
"""Prompts: the name of a shipped set or of a file, a table, or any iterable of prompts."""

KINDS = "JSONL, JSON, CSV or Parquet, gzip of those, or hf://datasets/USER/NAME/FILE"


def shipped_sets() -> dict[str, str]:
    """Names of the prompt sets that ship with the toolkit, each with a line that says what it is for."""
    return {
        "train": "prompts an organism is trained on",
        "clean": "calibration: clean prompts a probe may see, of topics never trained on",
        "development": "choosing layers and estimators: topics never trained on",
        "development-style": "choosing layers and estimators: styles never trained on",
        "held-out": "test: topics never trained on",
        "unseen-style": "test: styles never trained on",
    }


def load_prompts(source: PromptsLike) -> list[Prompt]:
    """Prompts out of whatever holds them.

    Rows of a file that have no `id` are named by their place (`line-3`, `row-3`), others by what they say.

    Args:
        source: One of these.

            - A text or path names a shipped set, a file (JSONL, JSON, CSV, Parquet, gzip of those), or with
              `hf://datasets/` a file on the Hugging Face hub. A text is never itself a prompt: put it into a list.
            - An iterable gives a prompt each: texts, `Prompt`s, lists of messages, rows in OpenAI's, ShareGPT's,
              Alpaca's or TRL's shape (`docs/how-to/prompts.md`). A column of pandas or polars and a data set of
              `datasets` are such iterables.
            - A DataFrame of pandas or polars, or an Arrow table, gives a prompt a row.
            - A list of messages, a row or a `Prompt` alone is one prompt.

    Raises:
        DefectionError: Naming file and place, or the item: a shape that is not understood (with those that are), an
            empty prompt, wrong types, an id that a file repeats, a source without prompts.

    Examples:
        >>> [prompt.text for prompt in load_prompts(["Who?", {"messages": [{"role": "user", "content": "Why?"}]}])]
        ['Who?', 'Why?']
    """
    if isinstance(source, str | PathLike):
        return _of_file(source)
    return _distinct(prompt_of(item, f"prompt {number}") for number, item in enumerate(items_of(source), start=1))


def items_of(source: PromptsLike) -> list[Any]:
    """What `load_prompts` makes a prompt of each of: those of a file, the rows of a table, the items of an iterable.

    What is itself one prompt stands alone.
    """
    if isinstance(source, str | PathLike):
        return list(_of_file(source))
    if (rows := table_rows(source)) is not None:
        return list(rows)
    if isinstance(source, Mapping | Prompt) or isinstance(getattr(source, "prompt", None), Prompt):
        if hasattr(source, "num_rows"):
            names = ", ".join(map(str, source)) if isinstance(source, Mapping) else ""
            raise DefectionError(f"a {type(source).__name__} holds several data sets: give one of {names}")
        return [source]
    if not isinstance(source, Iterable):
        raise DefectionError(
            f"a {type(source).__name__} holds no prompts: give a file's path, or an iterable of {SHAPES}"
        )
    items = list(source)
    return [items] if items and all(map(is_message, items)) else items


def parse_prompts(text: str, name: str, *, set_name: str | None = None) -> list[Prompt]:
    """Prompts out of JSON lines; `name` stands for the file in errors."""
    return prompts_of_rows(json_lines(text.removeprefix("\ufeff"), name), name, set_name)


def refuse_repeated_ids(prompts: Iterable[Prompt], where: str) -> None:
    """DefectionError naming an id that two prompts have, since a file of them could not be read again."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise DefectionError(f"{where} would hold two prompts of the id {prompt.id!r}: ids must differ")
        seen.add(prompt.id)


def _of_file(source: str | PathLike[str]) -> list[Prompt]:
    name, path = str(source), Path(source)
    if name in shipped_sets() and not path.exists():
        folder = resources.files(__package__) / "data" / "prompts"
        return parse_prompts((folder / f"{name}.jsonl").read_text(encoding="utf-8"), name, set_name=name)
    if not name.startswith(HUB) and _is_missing(path):
        sets = ", ".join(shipped_sets())
        raise DefectionError(
            f"no prompts at {printable(path)}: give a file ({KINDS}) or one of the shipped sets {sets}; from Python, "
            "texts stand in a list"
        )
    return prompts_of_rows(file_rows(name if name.startswith(HUB) else path), name)


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # whoever reads it will say why not
        return False
    return False


def prompts_of_rows(rows: Rows, name: str, set_name: str | None = None) -> list[Prompt]:
    """The prompts of a file of this name, whose ids must differ; DefectionError names the place of what is wrong."""
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise DefectionError(f"{name} {place} holds a {type(row).__name__}, not an object: {SHAPES}")
        prompt = prompt_of(row, f"{name} {place}", default_id=place.replace(" ", "-"), set_name=set_name)
        if prompt.id in seen:
            raise DefectionError(
                f"{name} {place}: id {prompt.id!r} was already used on {seen[prompt.id]}; ids must differ"
            )
        seen[prompt.id] = place
        prompts.append(prompt)
    if not prompts:
        raise DefectionError(f"{name} holds no prompts; write one JSON object a line with a 'prompt' or 'messages'")
    return prompts


def _distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The same prompts; where an id made of what is said stands twice, since that is said twice, it gets a number."""
    found: list[Prompt] = []
    ids: set[str] = set()
    for prompt in prompts:
        if prompt.id in ids and prompt.id == said_id(prompt.messages):
            number = next(n for n in count(2) if f"{prompt.id}-{n}" not in ids)
            found.append(replace(prompt, id=f"{prompt.id}-{number}"))
        else:
            found.append(prompt)
        ids.add(found[-1].id)
    return found
