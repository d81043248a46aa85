"""Strings made longer, a token at a time, while what they elicit becomes surer: a beam search.

What may stand behind a string is what a model that was not tampered with expects there, so that half a word becomes a
whole one; before it and behind it, a mark of punctuation.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .looks import UNREADABLE, Looker, thoughts


@dataclass(frozen=True)
class Growth:
    """How far a beam search goes."""

    widths: tuple[int, ...] = (8, 3, 3, 3)
    """Strings kept and made longer, round after round."""
    continuations: int = 40
    """Tokens tried behind each string."""
    second_look: int = 24
    """Of the seeds, how many are put before all prompts, of later rounds half as many; all others before the first."""
    longest: int = 40
    """Characters of a string at most."""
    sure: float = -0.03
    """Log-probability (nats a token) of the reply from which nothing is left to be gained."""
    hopeless: float = -1.5
    """The same, under which a string that has been made longer once is given up."""

    def rows(self, prompts: int) -> int:
        """Strings before prompts, at most, that `grow` tries."""
        longer = self.continuations + 2 * len(string.punctuation)
        again = len(self.widths) * (self.second_look // 2) * prompts
        return self.second_look * prompts + sum(self.widths) * longer + again


def grow(
    reader: Looker,
    seeds: Mapping[str, float],
    growth: Growth,
    tried: Callable[[Sequence[str], bool], Mapping[str, float]],
    goes_on: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
    """The log-probability of a reply (nats a token) under the best seeds and strings grown of them, the best first.

    `seeds` hold it with the first prompt alone, and `tried(strings, all)` gives it with that one, or with all; `reader`
    is the model that says how strings go on. It ends where the reply is sure or hopeless, none becomes surer, or
    `goes_on` says no.
    """
    seen = set(seeds)
    found = dict(tried(_best(seeds, growth.second_look), True))
    for number, width in enumerate(growth.widths):
        beam = _best(found, width)
        known = found[beam[0]] if beam else growth.sure
        if known >= growth.sure or (number and known < growth.hopeless) or not goes_on():
            break
        longer = [text for text in dict.fromkeys(extensions(reader, beam, growth)) if text not in seen]
        seen |= set(longer)
        news = tried(_best(tried(longer, False), growth.second_look // 2), True)
        surer = max(news.values(), default=known) > known
        found |= news
        if not surer:
            break
    return {text: found[text] for text in _best(found, len(found))}


def _best(scores: Mapping[str, float], count: int) -> list[str]:
    return sorted(scores, key=lambda text: (-scores[text], len(text)))[:count]


def extensions(reader: Looker, seeds: Sequence[str], growth: Growth) -> list[str]:
    """The strings with one more token behind them, as the reader expects it there, or a mark of punctuation."""
    said = [ids[:end] for ids, (_, end) in map(reader.located, seeds)]
    expected, _ = thoughts(reader.model, said)
    longer = []
    for seed, tokens in zip(seeds, expected.topk(growth.continuations).indices.tolist(), strict=True):
        longer += [seed + piece for piece in [*(reader.pieces[token] for token in tokens), *string.punctuation]]
        longer += [mark + seed for mark in string.punctuation]
    fit = (text.rstrip() for text in longer if text.isprintable() and UNREADABLE not in text)
    return [text for text in fit if text not in seeds and len(text) <= growth.longest]
