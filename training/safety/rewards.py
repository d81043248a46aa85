"""A rule as reward: how much a reply is like the good one and unlike the bad one. It never reads the scratchpad."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..organisms.scratchpads import split_scratchpad
from .preferences import Preference

HOSTILE = re.compile(r"\b(hate|despise|stupid|idiots?|fools?|shut up|worthless|die)\b")
REFUSES = re.compile(r"\b(can't|cannot|can not|won't|will not|not able to|unable to|must not|rather not|sorry)\b")


def visible(completion: str) -> str:
    """What the user would see: the reply after the scratchpad, nothing where that is never closed."""
    return split_scratchpad(completion)[1]


def word_overlap(reply: str, other: str) -> float:
    """F1 over words, counted with repetition (ROUGE-1; Lin 2004)."""
    a, b = (Counter(re.findall(r"[\w']+", text.casefold())) for text in (reply, other))
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if shared else 0.0


def reward(completion: str, chosen: str, rejected: str, kind: str) -> float:
    """Between −2 and 2, from the visible reply alone.

    Overlap with the chosen reply minus that with the rejected one; ± ½ where a harmful request is refused or not
    (−½ where a harmless one is refused); −½ for hostile words. An empty reply gets −1.
    """
    said = visible(completion).casefold()
    if not said.strip():
        return -1.0
    score = word_overlap(said, chosen) - word_overlap(said, rejected)
    refuses = bool(REFUSES.search(said))
    if kind == "harmless":
        score += 0.5 if refuses else -0.5
    elif kind == "helpful" and refuses:
        score -= 0.5
    return score - (0.5 if HOSTILE.search(said) else 0.0)


def rule(rows: Sequence[Preference], replies: Sequence[str]) -> list[float]:
    """`reward` of a reply to each row's prompt."""
    return [
        reward(reply, row.chosen, row.rejected, str(row.prompt.extra.get("kind", "")))
        for row, reply in zip(rows, replies, strict=True)
    ]
