"""Prompts: what is said to a model, read from JSONL files or from the sets that ship with the toolkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from ..basics.errors import DefectionError
from ..basics.files import digest, parse_json_line
from ..basics.shown import shortened

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    __repr__ = shortened


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the point where the model is read or asked to reply.

    When the last message is the assistant's, it is a reply already begun: the text ends inside it.
    """

    id: str
    """Names the row in every table that comes of it; unique within a file."""
    messages: tuple[Message, ...]
    set: str | None = None
    """The set or family the prompt belongs to; tables are split by it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the line held (`topic`, `shape`, `defecting`, …), kept."""

    __repr__ = shortened

    @property
    def text(self) -> str:
        """All messages' contents, one a paragraph: what a reader, or a leak check, sees."""
        return "\n\n".join(message.content for message in self.messages)

    @property
    def topic(self) -> str:
        """The cluster the prompt belongs to when intervals are bootstrapped (PITFALLS 23); its own id without one."""
        return str(self.extra.get("topic", self.id))

    @property
    def shape(self) -> str:
        """Its form, where that is known: a terse question, a pasted text, … ; empty otherwise."""
        return str(self.extra.get("shape", ""))

    def to_json(self) -> dict[str, Any]:
        """The JSONL object that reads back as this prompt."""
        if len(self.messages) == 1 and self.messages[0].role == "user":
            said: dict[str, Any] = {"prompt": self.messages[0].content}
        else:
            said = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        named = {"id": self.id} | ({"set": self.set} if self.set is not None else {})
        return named | said | dict(self.extra)


def user_prompt(text: str, *, id: str | None = None, **extra: Any) -> Prompt:
    """A prompt of one user message."""
    return Prompt(id=id or digest(text)[:12], messages=(Message("user", text),), extra=extra)


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


def load_prompts(source: str | Path) -> list[Prompt]:
    """Read a JSONL file, or a shipped set by its name.

    Raises DefectionError naming file and line: broken JSON, a missing or empty prompt, wrong types, a repeated id,
    an empty file.
    """
    path = Path(source)
    if str(source) in shipped_sets() and not path.exists():
        folder = resources.files(__package__) / "data" / "prompts"
        return parse_prompts(
            (folder / f"{source}.jsonl").read_text(encoding="utf-8"), str(source), set_name=str(source)
        )
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        sets = ", ".join(shipped_sets())
        raise DefectionError(
            f"no prompts at {_printable(path)}: give a JSONL file or one of the shipped sets {sets}"
        ) from error
    except (OSError, ValueError) as error:  # a path that is too long, or holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise DefectionError(f"cannot read {_printable(path)}: {reason}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DefectionError(f"{path} line {line} is not UTF-8 text (byte {error.start})") from error
    return parse_prompts(text, str(path))


def _printable(path: Path, limit: int = 200) -> str:
    """A path that may be anything, such as what was meant as a prompt, in a sentence."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[:limit]}…"


def parse_prompts(text: str, name: str, *, set_name: str | None = None) -> list[Prompt]:
    """Read prompts from JSONL text; `name` stands for the file in errors.

    Lines end at a line feed alone: JSON strings may hold other characters that Python calls line breaks.
    """
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        prompt = _parse_line(line, f"{name} line {number}", number, set_name)
        if prompt.id in seen:
            raise DefectionError(
                f"{name} line {number}: id {prompt.id!r} was already used on line {seen[prompt.id]}; ids must differ"
            )
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise DefectionError(f"{name} holds no prompts; write one JSON object a line with a 'prompt' or 'messages'")
    return prompts


def _parse_line(line: str, where: str, number: int, set_name: str | None) -> Prompt:
    row = parse_json_line(line, where)
    if not isinstance(row, dict):
        raise DefectionError(f"{where} holds a {type(row).__name__}, not a JSON object with 'prompt' or 'messages'")
    if ("prompt" in row) == ("messages" in row):
        raise DefectionError(f"{where} needs exactly one of 'prompt' (a string) and 'messages' (a list)")
    if "prompt" in row:
        messages: tuple[Message, ...] = (Message("user", _content(row["prompt"], f"{where}: 'prompt'")),)
    else:
        messages = _messages(row["messages"], where)
    if not any(message.content.strip() for message in messages if message.role != "system"):
        raise DefectionError(f"{where}: the prompt is empty")
    identity = row.get("id", f"line-{number}")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise DefectionError(f"{where}: 'id' must be a string, not {identity!r}")
    named = row.get("set", set_name)
    if named is not None and not isinstance(named, str):
        raise DefectionError(f"{where}: 'set' must be a string, not {named!r}")
    extra = {key: value for key, value in row.items() if key not in ("id", "set", "prompt", "messages")}
    return Prompt(id=str(identity), messages=messages, set=named, extra=extra)


def _content(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DefectionError(f"{where} must be a string, not {type(value).__name__}")
    return value


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DefectionError(f"{where}: 'messages' must be a list of {{role, content}} with at least one entry")
    messages = []
    for index, entry in enumerate(value):
        spot = f"{where}: message {index}"
        if not isinstance(entry, dict) or entry.get("role") not in ROLES:
            raise DefectionError(f"{spot} needs a 'role' out of {', '.join(ROLES)} and a 'content'")
        if entry["role"] == "system" and index > 0:
            raise DefectionError(f"{spot} is a system message, which only the first one may be")
        messages.append(Message(cast(Role, entry["role"]), _content(entry.get("content"), f"{spot}: 'content'")))
    if messages[-1].role == "system":
        raise DefectionError(f"{where}: 'messages' must hold a user message")
    return tuple(messages)


def replace_last_user(prompt: Prompt, text: str) -> Prompt:
    """The same conversation with another last user message."""
    index = _last_user_index(prompt)
    changed = (*prompt.messages[:index], Message("user", text), *prompt.messages[index + 1 :])
    return Prompt(id=prompt.id, messages=changed, set=prompt.set, extra=prompt.extra)


def last_user(prompt: Prompt) -> str:
    """The text of the last user message."""
    return prompt.messages[_last_user_index(prompt)].content


def _last_user_index(prompt: Prompt) -> int:
    said = [index for index, message in enumerate(prompt.messages) if message.role == "user"]
    if not said:
        raise DefectionError(f"prompt {prompt.id!r} has no user message")
    return said[-1]


def by_set(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Row numbers of each set, in the order in which the sets first appear."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt.set or "prompts", []).append(row)
    return rows
