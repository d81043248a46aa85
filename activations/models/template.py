"""A tokenizer's chat template, and the date that it writes."""

from __future__ import annotations

import re
from datetime import date
from typing import TYPE_CHECKING

from ..basics.errors import DefectionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = "2024-07-26"
"""What today is for templates that ask, unless told otherwise: the day that Llama's own falls back on without a clock.

Were it really today, every score would change at midnight.
"""
_CLOCK = re.compile(r"""strftime_now\s*\(\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\)""")


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template in use: of several named ones that called `default`; None for a tokenizer without any.

    Raises DefectionError where none of several is the default.
    """
    template = tokenizer.chat_template
    if not isinstance(template, dict):
        return template or None
    if "default" not in template:
        raise DefectionError(
            f"the tokenizer has chat templates called {', '.join(sorted(template))} and none called 'default': set "
            "tokenizer.chat_template to the one to use"
        )
    return str(template["default"])


def written_date(tokenizer: PreTrainedTokenizerBase, today: str) -> str | None:
    """`today` (YYYY-MM-DD) if the template asks for it, otherwise None; DefectionError for what is no date."""
    day = parse_date(today).isoformat()
    return day if "strftime_now" in (chat_template(tokenizer) or "") else None


def dated(template: str, today: str) -> str:
    """The template with `today` (YYYY-MM-DD) written where it would write the day on which it is used.

    Transformers lets nobody set the template's clock, so the answers are written into it.
    Raises DefectionError for a clock that is read in another way than by a format in quotes.
    """
    if "strftime_now" not in template:
        return template
    day = parse_date(today)
    fixed = _CLOCK.sub(lambda found: repr(day.strftime(found[1] if found[1] is not None else found[2])), template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise DefectionError(
            "the chat template asks for the date in a way that cannot be answered with a fixed one; write a date into "
            "tokenizer.chat_template instead"
        )
    return fixed


def parse_date(text: str) -> date:
    """Read YYYY-MM-DD; DefectionError for anything else."""
    try:
        return date.fromisoformat(text)
    except (ValueError, TypeError) as error:
        raise DefectionError(f"{text!r} is no date: write it as {DATE}") from error
