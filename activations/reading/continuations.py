"""What several continuations cost behind every prompt, and how each goes on by itself: the prompt is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.logits import own_logits
from ..models.model import Model
from ..models.modes import in_use
from .batching import of_one_length, shared_by_all
from .forward import automatic_batch_tokens, hidden_states, label_losses, token_losses
from .generate import end_tokens, plan_replies, reply_to_batch
from .prefixes import PrefixCache

ROWS = 128
"""Rows of a batch at most: their logits, and their keys and values, are held together."""
REPLY_BATCH = 3072
"""Tokens of a batch of replies, of models that keep no keys and values."""


@dataclass(frozen=True)
class Continued:
    """What may follow each of some rows."""

    losses: Float[Tensor, "row continuation"]
    """Mean cost of each continuation's tokens behind each row: nats a token, in host memory."""
    replies: list[tuple[int, ...]]
    """[row] the greedy reply, without its end token."""
    likely: list[float]
    """[row] the reply's log-probability, nats."""


def continued(
    model: Model, ids: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], reply_tokens: int = 0
) -> Continued:
    """What each continuation costs behind each row, and a greedy reply to each of `reply_tokens` at most.

    Up to rounding what `token_losses` gives of rows that end in a continuation, from a pass over each row and one over
    each continuation alone. A model that keeps no keys and values is given them whole.
    """
    if not model.shares_prefixes:
        return _one_by_one(model, ids, continuations, reply_tokens)
    losses = torch.zeros(len(ids), len(continuations))
    replies: list[tuple[int, ...]] = [()] * len(ids)
    likely = [0.0] * len(ids)
    longest = max([reply_tokens, *map(len, continuations)])
    if not ids or not longest:
        return Continued(losses, replies, likely)
    shared = shared_by_all(ids)
    tails = [list(row[shared:]) for row in ids]
    with torch.inference_mode(), in_use(model.network):
        prefix = PrefixCache()
        if shared:
            hidden_states(model.network, torch.tensor([list(ids[0][:shared])], device=model.device), prefix)
        room = automatic_batch_tokens(model, None) // (max(map(len, tails)) + longest)
        for rows in of_one_length(tails, max(1, min(ROWS, room))):
            behind = prefix.behind()  # rows of one length, so that nothing is padded between a row and what follows
            given = torch.tensor([tails[row] for row in rows], device=model.device)
            last = hidden_states(model.network, given, behind)[:, -1]
            losses[rows] = _losses(model, behind, last, continuations)
            for row, reply, sure in zip(rows, *_greedy(model, behind, last, reply_tokens), strict=True):
                replies[row], likely[row] = reply, sure
    return Continued(losses, replies, likely)


def _losses(
    model: Model, behind: PrefixCache, last: Float[Tensor, "row d_model"], continuations: Sequence[Sequence[int]]
) -> Float[Tensor, "row continuation"]:
    if not continuations:
        return torch.zeros(len(last), 0)
    network, rows = model.network, len(last)
    firsts = [continuation[0] for continuation in continuations]
    sums = -own_logits(network, last).float().log_softmax(dim=-1)[:, firsts].cpu()
    for column, (_, *others) in enumerate(continuations):
        if others:
            said = torch.tensor([continuations[column][:-1]], device=model.device).expand(rows, -1)
            states = hidden_states(network, said, behind)
            for place, token in enumerate(others):
                sums[:, column] += label_losses(network, states[:, place], torch.full((rows,), token)).cpu()
    return sums / torch.tensor([len(continuation) for continuation in continuations])


def _greedy(
    model: Model, behind: PrefixCache, last: Float[Tensor, "row d_model"], tokens: int
) -> tuple[list[tuple[int, ...]], list[float]]:
    """The likeliest token, again and again; `behind` has them afterwards."""
    ends, hidden, said = end_tokens(model), last, list[Tensor]()
    likely, lengths = torch.zeros(len(last)), torch.zeros(len(last), dtype=torch.long)
    going = torch.ones(len(last), dtype=torch.bool)
    for step in range(tokens):
        best, chosen = own_logits(model.network, hidden).float().log_softmax(dim=-1).max(dim=-1)
        going &= ~torch.isin(chosen, ends.to(chosen.device)).cpu()
        likely += best.cpu() * going
        lengths += going
        said.append(chosen)
        if step == tokens - 1 or not going.any():
            break
        behind.keep_next()
        hidden = hidden_states(model.network, chosen[:, None].to(model.device), behind)[:, -1]
    rows = torch.stack(said, dim=1).tolist() if said else [[]] * len(last)
    return [tuple(row[:length]) for row, length in zip(rows, lengths.tolist(), strict=True)], likely.tolist()


def _one_by_one(
    model: Model, ids: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], reply_tokens: int
) -> Continued:
    rows, each = [row for row in ids for _ in continuations], list(continuations) * len(ids)
    losses = torch.tensor([float(loss.mean()) for loss in losses_behind(model, rows, each)])
    replies: list[tuple[int, ...]] = [()] * len(ids)
    for batch in plan_replies(model, ids, REPLY_BATCH) if reply_tokens and ids else ():
        for row, reply in zip(batch.rows, reply_to_batch(model, ids, batch, reply_tokens)[0], strict=True):
            replies[row] = tuple(reply)
    likely = [-float(loss.sum()) for loss in losses_behind(model, ids, replies)]
    return Continued(losses.view(len(ids), len(continuations)), replies, likely)


def losses_behind(
    model: Model, ids: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[Float[Tensor, "token"]]:
    """What the tokens of each row's own continuation cost behind it, nats."""
    whole = [[*row, *continuation] for row, continuation in zip(ids, continuations, strict=True)]
    return token_losses(model, whole, [range(len(row), len(both)) for row, both in zip(ids, whole, strict=True)])
