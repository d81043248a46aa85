"""The residual stream at the end of very many short rows, read as a tree: what some of them begin with, once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.model import Model
from ..models.modes import in_use
from ..models.sites import AFTER
from .batching import shared_by_all
from .forward import LastPrefix, Reading, automatic_batch_tokens, forward, plan_reading, read_batch
from .prefixes import PrefixCache


@torch.inference_mode()
def read_ends(model: Model, ids: Sequence[Sequence[int]], layer: int) -> Float[Tensor, "row d_model"]:
    """The stream after a layer at each row's last token (fp32, in host memory).

    Rows become longer by a token at a time, behind the keys and values of the row that they were: words of a
    vocabulary are read in half the tokens that they are spelt in. Up to rounding it is what `read_batch` gives, which
    reads models that keep no keys and values.
    """
    reading = Reading((layer,), AFTER)
    if not model.shares_prefixes:
        return _one_by_one(model, ids, reading)
    shared = shared_by_all(ids)
    tails = [tuple(row[shared:]) for row in ids]
    read: dict[tuple[int, ...], Tensor] = {}
    with in_use(model.network):
        prefix = PrefixCache()
        if shared:
            first = torch.tensor([list(ids[0][:shared])], device=model.device)
            forward(model, first, reading, torch.tensor([0]), torch.tensor([0]), prefix)
        distinct, room = sorted(set(tails)), automatic_batch_tokens(model, None)
        for start in range(0, len(distinct), room):
            read |= _tree(model, prefix, distinct[start : start + room], reading)
    return torch.stack([read[tail] for tail in tails]) if tails else torch.zeros(0, model.d_model)


def _tree(
    model: Model, prefix: PrefixCache, rows: Sequence[tuple[int, ...]], reading: Reading
) -> dict[tuple[int, ...], Tensor]:
    """Of each of the rows, all of which stand behind the prefix, what is read at its end."""
    wanted, behind = set(rows), prefix.behind()
    read: dict[tuple[int, ...], Tensor] = {}
    known: dict[tuple[int, ...], int] = {(): 0}
    for length in range(1, max(map(len, rows)) + 1):
        longer = list(dict.fromkeys(row[:length] for row in rows if len(row) >= length))
        if length > 1:
            behind.batch_select_indices(torch.tensor([known[row[:-1]] for row in longer]))
            behind.keep_next()
        tokens = torch.tensor([row[-1:] for row in longer], device=model.device)
        places = torch.arange(len(longer))
        vectors = forward(model, tokens, reading, places, torch.zeros_like(places), behind)[:, 0].float().cpu()
        read |= {row: vector for row, vector in zip(longer, vectors, strict=True) if row in wanted}
        known = {row: number for number, row in enumerate(longer)}
    return read


def _one_by_one(model: Model, ids: Sequence[Sequence[int]], reading: Reading) -> Float[Tensor, "row d_model"]:
    found, prefix, last = torch.zeros(len(ids), model.d_model), LastPrefix(), [[len(row) - 1] for row in ids]
    for batch in plan_reading(model, ids, automatic_batch_tokens(model, None)):
        found[list(batch.rows)] = read_batch(model, ids, batch, reading, last, prefix)[:, 0].float().cpu()
    return found
