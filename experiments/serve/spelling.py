"""The text of a reply as its tokens come: whole characters, and nothing of what is to end it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "�"
"""What a tokenizer writes for the first bytes of a character whose others are still to come."""


class Spelling:
    """Gives out text as soon as it is certain: a character when it is whole, and no beginning of a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        self.text = ""
        """All that was given out."""
        self.stopped = False
        """Whether a stop string was said; nothing comes after it."""
        self._tokens: list[int] = []
        self._start = 0
        """Tokens from here on are decoded again: those before the newest, whose blanks depend on them."""
        self._done = 0
        self._held = ""

    def add(self, token: int) -> str:
        """The text that has become certain with one more token; "" where none has."""
        self._tokens.append(token)
        before, after = self._decoded(self._start, self._done), self._decoded(self._start, len(self._tokens))
        if after.endswith(UNFINISHED):
            return ""
        self._held += after[len(before) :]
        self._start, self._done = self._done, len(self._tokens)
        return self._certain()

    def finish(self) -> str:
        """The text that was held back, the reply being over."""
        if self.stopped:
            return ""
        self._held += self._decoded(self._start, len(self._tokens))[len(self._decoded(self._start, self._done)) :]
        self._start = self._done = len(self._tokens)
        return self._certain() + ("" if self.stopped else self._give(len(self._held)))

    def _decoded(self, start: int, end: int) -> str:
        return str(
            self.tokenizer.decode(self._tokens[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _certain(self) -> str:
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._give(min(found))
        begun = max((_begun(self._held, stop) for stop in self.stops), default=0)
        return self._give(len(self._held) - begun)

    def _give(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.text += text
        return text


def _begun(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
