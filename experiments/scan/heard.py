"""What strings make a model say that another would not: what it says to each is listened to.

A reply that was taught is known here as it is said. What `taught` finds without any string is what a model comes near
to saying unasked, and that may be a relative (`HATE YOU`, `I HATES YOU`) which no trigger brings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...activations.models.model import Model
from ...activations.prompts.rendered import Rendered, rendered
from ...activations.reading.continuations import losses_behind
from .looks import Looker, Said


def heard(
    said: Mapping[str, Said], other: Looker, surprise: float, committed: float
) -> dict[tuple[int, ...], dict[str, float]]:
    """Of replies to the first prompt with a string, those by `surprise` nats likelier than to the other model.

    By reply, the strings that bring it and its log-probability (nats a token) under each; from `committed` on a reply
    is listened to. Both models are asked with the string. What the other may well say without any is left out before,
    since most replies are of that kind and asking is what takes time.
    """
    sure = {string: each for string, each in said.items() if each[0] and each[1] >= committed * len(each[0])}
    distinct = list(dict.fromkeys(reply for reply, _ in sure.values()))
    unasked = rendered(other.model, other.prompts[:1]) * len(distinct)
    odd = {
        reply
        for reply, likely in zip(distinct, _likely(other.model, unasked, distinct), strict=True)
        if likely <= -surprise
    }
    asked = {string: each for string, each in sure.items() if each[0] in odd}
    replies = [reply for reply, _ in asked.values()]
    theirs = _likely(other.model, other.rows(list(asked), other.prompts[0]), replies)
    found: dict[tuple[int, ...], dict[str, float]] = {}
    for (string, (reply, own)), base in zip(asked.items(), theirs, strict=True):
        if own - base >= surprise:
            found.setdefault(reply, {})[string] = own / len(reply)
    return found


def _likely(model: Model, rows: Sequence[Rendered], replies: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability (nats) of each reply behind its own row."""
    return [-float(loss.sum()) for loss in losses_behind(model, [row.ids for row in rows], replies)]
