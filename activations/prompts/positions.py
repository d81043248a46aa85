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

from transformers import PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from .chat import first_tokens, opening_and_reply
from .prompts import Prompt

LAST = "last"
HELP = (
    'last, first-response, a token\'s number, after:"TEXT", all, response, START:END, '
    "or mean: before one of the last three"
)
_SPAN = re.compile(r"(-?\d{1,15})?:(-?\d{1,15})?")


@dataclass(frozen=True)
class Position:
    """A rule, read."""

    kind: Literal["index", "span", "response", "first-response", "after"]
    start: int | None = None
    """The token of an index; where a span starts."""
    end: int | None = None
    text: str = ""
    mean: bool = False

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
    """Read a rule; DefectionError says what rules there are."""
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


def wanted_tokens(
    rule: str | Position,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    ids: Sequence[Sequence[int]],
) -> list[range]:
    """For each prompt, the indices into its token ids that the rule names (never none of them).

    `ids` are those of `tokenize(tokenizer, prompts)`. Raises DefectionError naming the first prompt to which the rule
    does not apply.
    """
    position = parse_position(rule) if isinstance(rule, str) else rule
    if not position.needs_text:
        return [_by_number(position, prompt, len(row)) for prompt, row in zip(prompts, ids, strict=True)]
    halves = [opening_and_reply(tokenizer, prompt) for prompt in prompts]
    spans = _character_spans(tokenizer, ["".join(half) for half in halves], prompts, ids)
    return [_by_text(position, prompt, *half, row) for prompt, half, row in zip(prompts, halves, spans, strict=True)]


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


def _by_text(position: Position, prompt: Prompt, opening: str, reply: str, spans: Sequence[tuple[int, int]]) -> range:
    if position.kind == "after":
        place = reply.rfind(position.text) if reply else opening.rfind(position.text)
        if place < 0:
            where = "reply" if reply else "rendered prompt"
            raise DefectionError(
                f"the {where} of prompt {prompt.id!r} does not hold {position.text!r} (position {position})"
            )
        end = place + len(position.text) + (len(opening) if reply else 0)
        token = max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)
        return range(token, token + 1)
    tokens = [i for i, (_, stop) in enumerate(spans) if stop > len(opening)]
    if not tokens:
        raise DefectionError(
            f"prompt {prompt.id!r} has no reply to read (position {position}): its last message must be the "
            "assistant's, and not empty"
        )
    return range(tokens[0], tokens[0] + 1 if position.kind == "first-response" else len(spans))


def _character_spans(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]
) -> list[list[tuple[int, int]]]:
    """Where each token's characters lie in the rendered text; a special token put before it lies nowhere (0, 0)."""
    if not tokenizer.is_fast:
        raise DefectionError(
            f"{type(tokenizer).__name__} does not say which characters a token holds; give the position as a number"
        )
    if not texts:
        return []
    opening = first_tokens(tokenizer)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    for prompt, found, row in zip(prompts, encoded["input_ids"], ids, strict=True):
        if [*opening, *found] != list(row):
            raise DefectionError(f"the token ids given for prompt {prompt.id!r} are not those of its text")
    return [[(0, 0)] * len(opening) + [(start, stop) for start, stop in row] for row in encoded["offset_mapping"]]
