"""What a model makes of many prompts at their last tokens: predictions and residuals, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.model import Model
from ..models.modes import in_use
from ..models.sites import gathering
from .batching import shared_by_all
from .forward import automatic_batch_tokens, hidden_states, right_padded
from .prefixes import PrefixCache

ROWS = 128
"""Rows of a batch at most: their logits are held together."""


@torch.inference_mode()
def endings(
    model: Model, ids: Sequence[Sequence[int]], layers: Sequence[int] = ()
) -> Iterator[tuple[list[int], Float[Tensor, "row d_model"], Float[Tensor, "row layer d_model"] | None]]:
    """A batch at a time: its row numbers, their final hidden states (see `own_logits`), and residuals after `layers`.

    Made for very many short rows that begin alike: what all of them begin with is computed once, where the model
    allows it. No residuals (None) without layers.
    """
    shared = shared_by_all(ids) if model.shares_prefixes else 0
    cache = None
    with in_use(model.network):
        if shared:
            cache = PrefixCache()
            hidden_states(model.network, torch.tensor([list(ids[0][:shared])], device=model.device), cache)
        for rows in _batches([len(row) - shared for row in ids], automatic_batch_tokens(model, None)):
            tails = [ids[row][shared:] for row in rows]
            places = torch.arange(len(rows), device=model.device)
            last = torch.tensor([len(tail) - 1 for tail in tails], device=model.device)
            with gathering(model.blocks, layers, places, last, stop=False) as picked:
                states = hidden_states(model.network, right_padded(tails, model.device), cache)
            states = states[places.to(states.device), last.to(states.device)]
            seen = [picked[layer].to(model.device) for layer in layers]
            yield rows, states, torch.stack(seen, dim=1) if seen else None


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of similar length side by side, as many as the tokens of a batch allow once padded."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        count = max(1, min(ROWS, tokens // lengths[order[0]]))
        yield order[:count]
        order = order[count:]
