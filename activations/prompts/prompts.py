"""Prompts: what is said to a model. Whatever a `Prompt` holds can be written to a file and read back equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..basics.errors import DefectionError
from ..basics.files import Json, digest
from ..basics.plain import NotPlain, plain
from ..basics.shown import shortened

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
RESERVED = ("id", "set", "prompt", "messages", "system")
"""Fields of a row that say who is asked what, so `extra` cannot hold them."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. DefectionError for another role, or a content that is no text.

    Examples:
        >>> Message("user", "Who are you?").role
        'user'
    """

    role: Role
    """`system`, `user` or `assistant`, as chat templates know them."""
    content: str
    """What is said."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DefectionError(f"a message's role must be one of {', '.join(ROLES)}, not {self.role!r}")
        if not isinstance(self.content, str):
            raise DefectionError(f"a message's content must be a string, not {type(self.content).__name__}")
        object.__setattr__(self, "content", _plain(self.content, "a message"))

    __repr__ = shortened


@dataclass(frozen=True)
class Prompt:
    r"""A conversation up to the point where the model is read or asked to reply.

    When the last message is the assistant's, it is a reply already begun: the text ends inside it. NumPy values and
    tuples in `extra` become what a JSON file would give back. Raises DefectionError for a prompt that says nothing,
    a system message that is not the first, and an `extra` that JSON cannot hold.

    Examples:
        >>> Prompt("a", (Message("system", "Be kind."), Message("user", "Hi"))).text
        'Be kind.\n\nHi'
    """

    id: str
    """Names the row in every table that comes of it; unique within a file."""
    messages: tuple[Message, ...]
    """The conversation, in order; an assistant's message at the end is a reply begun or given."""
    set: str | None = None
    """The set or family the prompt belongs to; tables are split by it."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the line held (`topic`, `shape`, `defecting`, …), kept."""

    def __post_init__(self) -> None:
        for name, value in (("id", self.id), ("set", self.set)):
            if not isinstance(value, str) and (name == "id" or value is not None):
                raise DefectionError(f"a prompt's {name!r} must be a string, not {value!r}")
        where = f"prompt {_plain(self.id, 'an id')!r}"
        messages = tuple(self.messages)
        _refuse_speechless(messages, where)
        if taken := [name for name in RESERVED if name in self.extra]:
            raise DefectionError(f"{where} has an extra field {taken[0]!r}, whose name is taken: rename it")
        object.__setattr__(self, "messages", messages)
        object.__setattr__(self, "set", _plain(self.set, where))
        object.__setattr__(self, "extra", _plain(self.extra, where) if self.extra else {})

    __repr__ = shortened

    @property
    def text(self) -> str:
        """All messages' contents, one a paragraph: what a reader, or a leak check, sees."""
        return "\n\n".join(message.content for message in self.messages)

    @property
    def topic(self) -> str:
        """The cluster the prompt belongs to when intervals are bootstrapped; its own id without one."""
        topic = self.extra.get("topic")
        return self.id if topic is None else str(topic)

    @property
    def shape(self) -> str:
        """Its form, where that is known: a terse question, a pasted text, … ; empty otherwise."""
        shape = self.extra.get("shape")
        return "" if shape is None else str(shape)

    def to_json(self) -> Json:
        """The JSONL object that reads back as this prompt."""
        if len(self.messages) == 1 and self.messages[0].role == "user":
            said: Json = {"prompt": self.messages[0].content}
        else:
            said = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        named = {"id": self.id} | ({"set": self.set} if self.set is not None else {})
        return named | said | dict(self.extra)


def _plain(value: object, where: str) -> Any:
    try:
        return plain(value)
    except NotPlain as error:
        raise DefectionError(f"{where} holds {error}") from error


def _refuse_speechless(messages: Sequence[Message], where: str) -> None:
    if strange := [message for message in messages if not isinstance(message, Message)]:
        raise DefectionError(
            f"{where} holds a {type(strange[0]).__name__} where a Message belongs; load_prompts makes prompts of "
            "conversations in other shapes"
        )
    if any(message.role == "system" for message in messages[1:]):
        raise DefectionError(f"{where}: a system message stands after the first message, where only it may be")
    if not any(message.content.strip() for message in messages if message.role != "system"):
        raise DefectionError(f"{where} is empty: it must hold a message of the user with text in it")


def user_prompt(text: str, *, id: str | None = None, set: str | None = None, **extra: object) -> Prompt:
    """A prompt of one user message.

    Args:
        text: What the user says.
        id: Names the prompt in every table; by default one made of the text.
        set: The set or family that tables are split by.
        **extra: Whatever else is known of it (`topic`, `defecting`, …), as JSON can hold it.

    Raises:
        DefectionError: For an empty text, an extra that JSON cannot hold, and one whose name is taken.

    Examples:
        >>> user_prompt("Who?", topic="people").topic
        'people'
    """
    messages = (Message("user", text),)
    return Prompt(id or said_id(messages), messages, set, extra)


def texts_digest(*groups: Iterable[Prompt]) -> str:
    """Names what groups of prompts say and are called, in order: files without ids number their lines, so that an id
    may come to stand for another text.
    """
    return digest([[prompt.to_json() for prompt in group] for group in groups])


def said_id(messages: Sequence[Message]) -> str:
    """An id made of what is said, the same wherever it is said."""
    alone = len(messages) == 1 and messages[0].role == "user"
    return digest(messages[0].content if alone else [[message.role, message.content] for message in messages])[:12]


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
