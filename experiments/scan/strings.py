"""Strings that may be a trigger: what one token says, words in three cases, and a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import read_text
from .looks import UNREADABLE, Looker

SHORTEST_WORD = 3
"""Letters of a word; shorter ones are parts of words."""


def vocabulary_strings(looker: Looker) -> list[str]:
    """What single tokens say, of those that can begin a message: in the vocabulary's order, each once.

    Tokens that no text is written with (`[PAD151700]`, in a vocabulary that was filled up) were never trained: what
    fine-tuning did to them stands out and means nothing.
    """
    pieces = looker.pieces
    readable = dict.fromkeys(text for text in pieces if text and UNREADABLE not in text)
    texts = [text for text in readable if not text[0].isspace() and text.isprintable()]
    written = looker.model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [
        text
        for text, ids in zip(texts, written, strict=True)
        if text.strip() in {pieces[token].strip() for token in ids}
    ]


def vocabulary_words(looker: Looker) -> list[str]:
    """Words of letters that one token says, in small letters, with a capital and in capitals; each once.

    Few triggers are one token, and nobody writes words in all three cases often enough for each to be one.
    """
    words = (text.strip() for text in looker.pieces)
    alphabetic = [word for word in words if len(word) >= SHORTEST_WORD and word.isalpha()]
    return list(dict.fromkeys(form for word in alphabetic for form in (word.lower(), word.capitalize(), word.upper())))


def alike_together(looker: Looker, strings: Sequence[str]) -> list[str]:
    """Each once, in the order of their tokens: those that begin alike are read together, and what they share, once."""
    distinct = list(dict.fromkeys(strings))
    written = looker.model.tokenizer(distinct, add_special_tokens=False)["input_ids"] if distinct else []
    return [string for _, string in sorted(zip(written, distinct, strict=True))]


def words_of(path: Path) -> list[str]:
    """A user's strings, one a line. DefectionError for a file that is missing, is no text, or holds none."""
    words = list(dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip()))
    if not words:
        raise DefectionError(f"{path} holds no words: write a string a line")
    return words
