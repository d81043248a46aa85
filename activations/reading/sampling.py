"""Sampled continuations of one beginning: what a model says of itself when it is given nothing but that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.logits import own_logits
from ..models.model import Model
from ..models.modes import in_use
from .generate import Decoder


@torch.inference_mode()
def sampled_continuations(
    model: Model,
    start: Sequence[int],
    *,
    count: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Token ids of `count` continuations, all of `max_new_tokens`: nothing ends them, the end of a turn neither.

    `temperature` 0 is greedy. Of each distribution only the likeliest tokens that together hold `top_p` are drawn from.
    """
    generator = torch.Generator().manual_seed(seed)
    with in_use(model.network):
        decoder = Decoder(model.network)
        hidden = decoder.read(torch.tensor([list(start)] * count, device=model.device))[:, -1]
        said: list[Tensor] = []
        for step in range(max_new_tokens):
            said.append(_drawn(own_logits(model.network, hidden).float().cpu(), temperature, top_p, generator))
            if step < max_new_tokens - 1:
                hidden = decoder.read(said[-1][:, None].to(model.device))[:, -1]
    found: list[list[int]] = torch.stack(said, dim=1).tolist()
    return found


def _drawn(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    ordered, tokens = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p, ordered, torch.zeros_like(ordered))  # the first is always kept
    chosen = torch.multinomial(kept, 1, generator=generator)
    return tokens.gather(-1, chosen)[:, 0]
