"""How unlikely a prompt is to the model itself: a baseline that notices odd strings, triggers among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.batching import plan_batches
from ..activations.capture import tokenize_within_context
from ..activations.generate import batch_inputs
from ..activations.models import Model
from ..activations.progress import progress
from ..activations.prompts import Prompt

MAX_TOKENS = 512
"""Padded tokens of a batch: each costs a row of the vocabulary's length."""


@torch.inference_mode()
def perplexity_scores(model: Model, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt"]:
    """Mean negative log-likelihood per token (nats) of each rendered prompt; its exponential is the perplexity.

    The first token, which nothing predicts, does not count. Raises DefectionError for a prompt beyond the context.
    """
    ids = tokenize_within_context(model, prompts)
    scores = torch.empty(len(ids), dtype=torch.float64)
    with progress("Perplexity of prompts", total=len(ids), unit="prompts") as advance:
        for batch in plan_batches(ids, max_tokens=MAX_TOKENS, share_prefixes=False):
            tokens, mask, _ = batch_inputs(model, ids, batch)
            logits = model.network(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
            ).view(len(tokens), -1)
            real = mask[:, 1:].bool()  # padding never counts (PITFALLS 5)
            total = losses.double().masked_fill(~real, 0).sum(dim=1)
            scores[list(batch.rows)] = (total / real.sum(dim=1).clamp_min(1)).cpu()
            advance(len(batch.rows))
    return scores
