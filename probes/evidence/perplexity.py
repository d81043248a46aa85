"""How unlikely a prompt is to the model itself: a baseline that notices odd strings, triggers among them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import Model, PromptsLike
from ...activations.basics.progress import progress
from ...activations.prompts.rendered import rendered
from ...activations.reading.forward import token_losses


def perplexity_scores(model: Model, prompts: PromptsLike) -> Float[Tensor, "prompt"]:
    """Mean negative log-likelihood per token (nats) of each rendered prompt; its exponential is the perplexity.

    The first token, which nothing predicts, does not count. What prompts share is computed once.
    Raises DefectionError for a prompt beyond the context.
    """
    ids = [row.ids for row in rendered(model, prompts)]
    with progress("Perplexity of prompts", total=len(ids), unit="prompts") as advance:
        losses = token_losses(model, ids, [range(1, len(row)) for row in ids], advance=advance)
    return torch.tensor([float(row.sum()) / max(1, len(row)) for row in losses], dtype=torch.float64)
