"""How unlikely a prompt is to the model itself: a baseline that notices odd strings, triggers among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...activations.basics.progress import progress
from ...activations.models.model import Model
from ...activations.prompts.prompts import Prompt
from ...activations.reading.batching import Batch, plan_batches
from ...activations.reading.capture import tokenize_within_context
from ...activations.reading.forward import distinct_rows
from ...activations.reading.generate import batch_inputs

LOGITS_AT_ONCE = 256
"""Tokens whose logits are held together: each costs a row of the vocabulary's length."""


@torch.inference_mode()
def perplexity_scores(model: Model, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt"]:
    """Mean negative log-likelihood per token (nats) of each rendered prompt; its exponential is the perplexity.

    The first token, which nothing predicts, does not count. What prompts share is computed once.
    Raises DefectionError for a prompt beyond the context.
    """
    ids = tokenize_within_context(model, prompts)
    scores = torch.empty(len(ids), dtype=torch.float64)
    openings: dict[tuple[int, ...], tuple[float, Tensor]] = {}
    with progress("Perplexity of prompts", total=len(ids), unit="prompts") as advance:
        for batch in plan_batches(ids, max_tokens=1024, share_prefixes=model.shares_prefixes):
            firsts, place = distinct_rows(ids, batch.rows)
            tokens, mask, cache = batch_inputs(model, ids, Batch(tuple(firsts), batch.prefix_length))
            stream = model.network.get_decoder()(
                input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state
            real = mask[:, batch.prefix_length + 1 :].bool()  # padding never counts (PITFALLS 5)
            losses = torch.zeros(real.shape, dtype=torch.float64, device=real.device)
            losses[real] = _losses(model, stream[:, :-1][real], tokens[:, 1:][real])
            total = losses.sum(dim=1)
            if batch.prefix_length:
                opening = tuple(ids[firsts[0]][: batch.prefix_length])
                if opening not in openings:
                    openings[opening] = _opening(model, opening)
                before, last = openings[opening]
                total += before + _losses(model, last.expand(len(tokens), -1), tokens[:, 0])
            counted = torch.tensor([max(1, len(ids[row]) - 1) for row in firsts])
            scores[list(batch.rows)] = (total.cpu() / counted)[place]
            advance(len(batch.rows))
    return scores


def _opening(model: Model, tokens: Sequence[int]) -> tuple[float, Float[Tensor, "d_model"]]:
    """The loss over a beginning that several prompts share, and the state that predicts what comes after it."""
    ids = torch.tensor([list(tokens)], device=model.device)
    stream = model.network.get_decoder()(input_ids=ids).last_hidden_state[0]
    return float(_losses(model, stream[:-1], ids[0, 1:]).sum()), stream[-1]


def _losses(model: Model, hidden: Float[Tensor, "token d_model"], targets: Int[Tensor, "token"]) -> Tensor:
    """Negative log-likelihood of each target after each state, fp64."""
    head = model.network.get_output_embeddings()
    parts = [
        torch.nn.functional.cross_entropy(head(states).float(), wanted, reduction="none").double()
        for states, wanted in zip(hidden.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts)
