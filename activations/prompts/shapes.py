"""The shapes in which people write a conversation, each brought to that of `Prompt`; whatever else is refused by name.

A row is told by its fields: `prompt` (text, or messages as TRL has them), `messages` or `conversation` (OpenAI's),
`conversations` (ShareGPT's), `instruction` (Alpaca's). A `system` beside them is the system message. A reply that
stands in a field of its own (`completion`, `output`, `chosen`, …) is no part of the prompt, and is kept in `extra`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from ..basics.errors import DefectionError
from ..basics.plain import NotPlain, plain
from .prompts import ROLES, Message, Prompt, Role, said_id

FIELDS = (
    "'prompt' (text or messages), 'messages' (OpenAI's: role and content), 'conversations' (ShareGPT's: from and "
    "value), 'instruction' (Alpaca's, with 'input')"
)
SHAPES = f"a text, a Prompt, a list of messages, or an object with one of {FIELDS}"
CONVERSATIONS = ("conversations", "conversation")
SPOKEN_BY: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""Who speaks, in OpenAI's words and in ShareGPT's."""
ASKED_AND_REPLIED: tuple[Role, ...] = ("user", "assistant")
TOOLS = ("tool", "function", "function_call", "observation", "ipython")
REASONING = ("reasoning_content", "reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")


def prompt_of(given: object, where: str, *, default_id: str | None = None, set_name: str | None = None) -> Prompt:
    """One prompt, whatever shape it comes in; `where` names it in errors.

    `default_id` is for one that has none; without it, that is made of what is said. Raises DefectionError that names
    the shape met, and those that are understood.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(own := getattr(given, "prompt", None), Prompt):  # a `Rendered`
        return own
    try:
        row = given if _is_conversation(given) else plain(given)
    except NotPlain as error:
        raise DefectionError(f"{where} holds {error}") from error
    if isinstance(row, str):
        row = {"prompt": row}
    elif isinstance(row, list | tuple) and row:
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DefectionError(f"{where} is a {type(given).__name__}{_emptiness(given)}, not {SHAPES}")
    messages, used = _spoken(row, where)
    identity = row.get("id", default_id)
    if identity is not None and (not isinstance(identity, str | int) or isinstance(identity, bool)):
        raise DefectionError(f"{where}: 'id' must be a string, not {identity!r}")
    named = row.get("set", set_name)
    if named is not None and not isinstance(named, str):
        raise DefectionError(f"{where}: 'set' must be a string, not {named!r}")
    extra = {name: value for name, value in row.items() if name not in ("id", "set", *used)}
    try:
        return Prompt(said_id(messages) if identity is None else str(identity), messages, named, extra)
    except DefectionError as error:
        raise DefectionError(f"{where}: {error}") from error


def is_message(given: object) -> bool:
    """Whether this is one turn of a conversation, not a prompt."""
    if isinstance(given, Message):
        return True
    return isinstance(given, Mapping) and ({"role", "content"} <= given.keys() or {"from", "value"} <= given.keys())


def _is_conversation(given: object) -> bool:
    """Whether it is a list with `Message`s in it, which are no JSON."""
    return isinstance(given, list | tuple) and any(isinstance(each, Message) for each in given)


def _emptiness(given: object) -> str:
    return " with nothing in it" if isinstance(given, list | tuple) and not given else ""


def _spoken(row: Mapping[str, object], where: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The conversation, and the row's fields that it stood in."""
    asked = [name for name in ("prompt", "messages") if row.get(name) is not None]
    if len(asked) == 2:
        raise DefectionError(f"{where} has both a 'prompt' and 'messages': leave one of them out")
    others = [name for name in (*CONVERSATIONS, "instruction") if row.get(name) is not None]
    if not asked and not others:
        held = ", ".join(repr(name) for name in row) or "nothing"
        raise DefectionError(f"{where} holds no prompt ({held[:200]}): it needs one of {FIELDS}")
    name = (asked or others)[0]
    value, used = row[name], ["prompt", "messages", "system", name]
    if name == "instruction":
        turns = _instructed(row, where)
        used += ["input", "history"]
    elif name == "prompt" and not isinstance(value, list):
        turns = [Message("user", _text(value, f"{where}: 'prompt'"))]
    else:
        turns = _messages(value, where, name)
    if row.get("system") is not None:
        if turns[0].role == "system":
            raise DefectionError(f"{where} has a 'system' beside {name!r}, which begins with a system message already")
        turns.insert(0, Message("system", _text(row["system"], f"{where}: 'system'")))
    return tuple(turns), tuple(used)


def _messages(value: object, where: str, name: str) -> list[Message]:
    if not isinstance(value, list | tuple) or not value:
        raise DefectionError(f"{where}: {name!r} must be a list of messages with at least one entry")
    return [_message(entry, f"{where}: message {number}") for number, entry in enumerate(value)]


def _message(entry: object, where: str) -> Message:
    if isinstance(entry, Message):
        return entry
    if not isinstance(entry, Mapping) or not is_message(entry):
        raise DefectionError(f"{where} needs a 'role' out of {', '.join(ROLES)} and a 'content' (or 'from', 'value')")
    said_by, content = (entry[name] for name in (("role", "content") if "role" in entry else ("from", "value")))
    if said_by in TOOLS or entry.get("tool_calls") or entry.get("function_call"):
        raise DefectionError(
            f"{where} calls a tool or is its answer, which only some templates can write; end the conversation before "
            "it, or write it into 'content' as the model's template does"
        )
    if reasoning := [name for name in REASONING if entry.get(name)]:
        raise DefectionError(
            f"{where} has its reasoning apart, in {reasoning[0]!r}; write it into 'content' as the model's template "
            "does, or leave it out"
        )
    role = SPOKEN_BY.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        raise DefectionError(f"{where} has a 'role' that is none of {', '.join(ROLES)}: {said_by!r}")
    return Message(role, _joined(content, where))


def _joined(content: object, where: str) -> str:
    """A message's text, out of its parts where it comes in parts."""
    if not isinstance(content, list | tuple):
        return _text(content, f"{where}: 'content'")
    return "".join(_part(part, where) for part in content)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or kind not in TEXT_PARTS:
        raise DefectionError(f"{where} holds a part of type {kind!r}, and only text can be read: leave that part out")
    return _text(part.get("text"), f"{where}: the 'text' of a part")


def _instructed(row: Mapping[str, object], where: str) -> list[Message]:
    """Alpaca's rows: what is asked, what it is asked about, and what was said before."""
    asked = _text(row["instruction"], f"{where}: 'instruction'")
    about = "" if row.get("input") is None else _text(row["input"], f"{where}: 'input'")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DefectionError(f"{where}: 'history' must be a list of pairs, what was asked and what was replied")
    before = [
        Message(role, _text(text, f"{where}: 'history'"))
        for pair in cast(Sequence[Sequence[object]], history)
        for role, text in zip(ASKED_AND_REPLIED, pair, strict=True)
    ]
    return [*before, Message("user", f"{asked}\n\n{about}" if about.strip() else asked)]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DefectionError(f"{where} must be a string, not {type(value).__name__}")
    return value
