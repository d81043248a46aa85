"""How much a model attends to a string in a prompt while it is about to answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.models.blocks import decoder_of
from ...activations.models.model import Model
from ...activations.models.modes import in_use
from ...activations.reading.batching import of_one_length

ROWS = 32
"""Rows of a batch: each holds a matrix of all its tokens for every head of every layer."""


@torch.inference_mode()
def attended(
    model: Model, ids: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]
) -> Float[Tensor, "row"] | None:
    """Share of the last token's attention that goes to a span of each row, mean over heads and layers.

    None for a model that has no such shares to tell (Mamba and its like).
    """
    shares = torch.zeros(len(ids))
    with in_use(model.network), eager_attention(model):
        for rows in of_one_length(ids, ROWS):
            tokens = torch.tensor([list(ids[row]) for row in rows], device=model.device)
            out = decoder_of(model.network)(input_ids=tokens, use_cache=False, output_attentions=True)
            last = [layer[:, :, -1] for layer in out.get("attentions") or () if layer is not None]
            if not last:
                return None
            mean = torch.stack([layer.float().mean(dim=1).cpu() for layer in last]).mean(dim=0)
            for attention, row in zip(mean, rows, strict=True):
                shares[row] = attention[slice(*spans[row])].sum()
    return shares


@contextmanager
def eager_attention(model: Model) -> Iterator[None]:
    """The model with the attention that gives its shares; the fused kernels keep none."""
    known = model.network.config._attn_implementation
    model.network.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.network.set_attn_implementation(known)
