"""What several continuations cost behind every prompt: the prompt is read once, whatever may follow it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.logits import own_logits
from ..models.model import Model
from ..models.modes import in_use
from .batching import of_one_length, shared_by_all
from .forward import automatic_batch_tokens, hidden_states, label_losses, token_losses
from .prefixes import PrefixCache

ROWS = 128
"""Rows of a batch at most: their logits, and their keys and values, are held together."""


def continuation_losses(
    model: Model, ids: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> Float[Tensor, "row continuation"]:
    """Mean cost of each continuation's tokens behind each row: nats a token, in host memory.

    Up to rounding what `token_losses` gives of rows that end in a continuation, from a pass over each row and one over
    each continuation alone. A model that keeps no keys and values is given them whole.
    """
    if not model.shares_prefixes:
        return _one_by_one(model, ids, continuations)
    found = torch.zeros(len(ids), len(continuations))
    if not ids or not continuations:
        return found
    shared = shared_by_all(ids)
    tails, longest = [list(row[shared:]) for row in ids], max(map(len, continuations))
    with torch.inference_mode(), in_use(model.network):
        prefix = PrefixCache()
        if shared:
            hidden_states(model.network, torch.tensor([list(ids[0][:shared])], device=model.device), prefix)
        room = automatic_batch_tokens(model, None) // (max(map(len, tails)) + longest)
        for rows in of_one_length(tails, max(1, min(ROWS, room))):
            found[rows] = _behind(model, prefix, [tails[row] for row in rows], continuations)
    return found


def _behind(
    model: Model, prefix: PrefixCache, tails: list[list[int]], continuations: Sequence[Sequence[int]]
) -> Float[Tensor, "row continuation"]:
    """The same of rows of one length, so that nothing is padded between a row and what follows it."""
    network, device, rows = model.network, model.device, len(tails)
    read = prefix.behind()
    last = hidden_states(network, torch.tensor(tails, device=device), read)[:, -1]
    firsts = [continuation[0] for continuation in continuations]
    sums = -own_logits(network, last).float().log_softmax(dim=-1)[:, firsts].cpu()
    for column, (_, *others) in enumerate(continuations):
        if others:
            said = torch.tensor([continuations[column][:-1]], device=device).expand(rows, -1)
            states = hidden_states(network, said, read)
            for place, token in enumerate(others):
                sums[:, column] += label_losses(network, states[:, place], torch.full((rows,), token)).cpu()
    return sums / torch.tensor([len(continuation) for continuation in continuations])


def _one_by_one(
    model: Model, ids: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> Float[Tensor, "row continuation"]:
    whole = [[*row, *continuation] for row in ids for continuation in continuations]
    places = [range(len(row), len(row) + len(continuation)) for row in ids for continuation in continuations]
    losses = torch.tensor([float(loss.mean()) for loss in token_losses(model, whole, places)])
    return losses.view(len(ids), len(continuations))
