"""Which tokens of a prompt are read: rules such as `last`, `response` or `mean:10:20`.

    RULE  =  TOKEN  |  SPAN  |  mean:SPAN
    TOKEN =  last  |  first-response  |  INDEX  |  after:"TEXT"        one vector a prompt
    SPAN  =  all   |  response        |  START:END                     a vector a token; with `mean:` their mean

- `last` is the last token of the rendered prompt, the one whose residual predicts what comes next; the same as `-1`.
- `response` is the reply that a prompt's last message has begun, if that message is the assistant's;
  `first-response` is its first token. A token that holds characters of both counts as the reply's.
- INDEX, START and END count tokens of the rendered prompt as Python does: from 0, or from the end if negative, END
  excluded; START and END may be left out. A span is cut at the prompt's ends, an index beyond them is an error.
- `after:"</scratchpad>"` is the token that completes the text: the last place where it stands in the reply, or in the
  whole rendered prompt when no reply is begun.

A rule that does not apply to a prompt (no reply, no such text, nothing in the span) is an error that names the prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..basics.errors import DefectionError
from .prompts import Prompt
from .rendered import Rendered

LAST = "last"
HELP = (
    'last, first-response, a token\'s number, after:"TEXT", all, response, START:END, '
    "or mean: before one of the last three"
)
_SPAN = re.compile(r"(-?\d{1,15})?:(-?\d{1,15})?")


@dataclass(frozen=True)
class Position:
    """A rule, read.

    Examples:
        >>> str(parse_position("mean:2:5"))
        'mean:2:5'
    """

    kind: Literal["index", "span", "response", "first-response", "after"]
    """A token by its number, a span of them, the reply, its first token, or the token that closes a text."""
    start: int | None = None
    """The token of an index; where a span starts."""
    end: int | None = None
    """Where a span ends, itself left out."""
    text: str = ""
    """What the position comes after; of `after` alone."""
    mean: bool = False
    """Whether the vectors of a span are averaged into one."""

    @property
    def one_each(self) -> bool:
        """Whether every prompt gives exactly one vector."""
        return self.mean or self.kind in ("index", "first-response", "after")

    @property
    def needs_text(self) -> bool:
        """Whether the rule looks at the prompt's text, and not at the number of its tokens alone."""
        return self.kind in ("response", "first-response", "after")

    def __str__(self) -> str:
        """The one spelling of the rule; what a store or a probe records."""
        if self.kind == "index":
            return LAST if self.start == -1 else str(self.start)
        if self.kind == "after":
            return f"after:{json.dumps(self.text, ensure_ascii=False)}"
        bounds = ["" if bound is None else str(bound) for bound in (self.start, self.end)]
        span = {"span": "all" if bounds == ["", ""] else ":".join(bounds)}.get(self.kind, self.kind)
        return f"mean:{span}" if self.mean else span


def parse_position(rule: str) -> Position:
    """Read a rule that says which tokens of a prompt are read.

    Args:
        rule: `last`, `first-response`, a token's number (from the end if negative) or `after:"TEXT"`, a vector a
            prompt; `all`, `response` or `START:END` (end excluded), a vector a token, and with `mean:` before it their
            mean.

    Raises:
        DefectionError: For any other text, saying what rules there are.

    Examples:
        >>> str(parse_position("last"))
        'last'
    """
    text = rule.strip()
    mean = text.startswith("mean:")
    span = text.removeprefix("mean:")
    named: dict[str, Position] = {
        LAST: Position("index", -1),
        "first-response": Position("first-response"),
        "all": Position("span"),
        "response": Position("response"),
    }
    if span in named and not (mean and named[span].one_each):
        return replace(named[span], mean=mean)
    if found := _SPAN.fullmatch(span):
        start, end = (None if bound is None else int(bound) for bound in found.groups())
        return Position("span", start, end, mean=mean)
    if re.fullmatch(r"-?\d{1,15}", text):
        return Position("index", int(text))
    if text.startswith("after:"):
        return Position("after", text=_quoted(text.removeprefix("after:"), rule))
    raise DefectionError(f"unknown position {rule!r}: write {HELP}")


def _quoted(text: str, rule: str) -> str:
    """TEXT with or without its double quotes; within them, backslashes as in JSON."""
    if text.startswith('"'):
        try:
            text = json.loads(text)
        except ValueError as error:
            raise DefectionError(
                f"position {rule!r}: the text after 'after:' is not quoted properly: {error}"
            ) from error
    if not isinstance(text, str) or not text:
        raise DefectionError(f'position {rule!r} names no text: write after:"TEXT"')
    return text


def wanted_tokens(rule: str | Position, rows: Sequence[Rendered]) -> list[range]:
    """For each prompt, the indices into its token ids that the rule names (never none of them).

    Raises DefectionError naming the first prompt to which the rule does not apply.
    """
    position = parse_position(rule) if isinstance(rule, str) else rule
    return [
        _by_text(position, row) if position.needs_text else _by_number(position, row.prompt, len(row.ids))
        for row in rows
    ]


def _by_number(position: Position, prompt: Prompt, length: int) -> range:
    if position.kind == "span":
        found = range(length)[position.start : position.end]
        if not found:
            raise DefectionError(f"prompt {prompt.id!r} is {length} tokens long: none of them is in {position}")
        return found
    assert position.start is not None
    if not -length <= position.start < length:
        raise DefectionError(f"prompt {prompt.id!r} is {length} tokens long: it has no token {position.start}")
    index = range(length)[position.start]
    return range(index, index + 1)


def _by_text(position: Position, row: Rendered) -> range:
    if position.kind == "after":
        text = row.reply or row.opening
        place = text.rfind(position.text)
        if place < 0:
            where = "reply" if row.reply else "rendered prompt"
            raise DefectionError(
                f"the {where} of prompt {row.prompt.id!r} does not hold {position.text!r} (position {position})"
            )
        end = place + len(position.text) + (len(row.opening) if row.reply else 0)
        token = max(i for i, (start, stop) in enumerate(row.spans) if start < end and stop > start)
        return range(token, token + 1)
    tokens = [i for i, (_, stop) in enumerate(row.spans) if stop > len(row.opening)]
    if not tokens:
        raise DefectionError(
            f"prompt {row.prompt.id!r} has no reply to read (position {position}): its last message must be the "
            "assistant's, and not empty"
        )
    return range(tokens[0], tokens[0] + 1 if position.kind == "first-response" else len(row.ids))
