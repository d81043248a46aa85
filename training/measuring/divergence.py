"""How far a model's next-token distributions along a reply are from others along the same reply."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import Model, Prompt
from ...activations.models.logits import own_logits
from ...activations.prompts.rendered import Rendered, rendered
from ...activations.reading.forward import final_states

Logprobs = Float[Tensor, "token vocabulary"]


@torch.inference_mode()
def reply_distributions(
    model: Model, prompts: Sequence[Prompt | Rendered], replies: Sequence[Sequence[int]]
) -> list[Logprobs]:
    """Log-probabilities (nats, fp32, host memory) of every token where each of a reply's stands: [token, vocabulary].

    A row costs its reply's tokens times the vocabulary: short replies, or few. Raises DefectionError naming a prompt
    that does not fit the model's context with its reply.
    """
    rows = rendered(model, prompts, reply_tokens=[len(said) for said in replies])
    ids = [[*row.ids, *said] for row, said in zip(rows, replies, strict=True)]
    wanted = [range(len(row.ids) - 1, len(whole) - 1) for row, whole in zip(rows, ids, strict=True)]
    asked = [row for row, tokens in enumerate(wanted) if tokens]
    found = [torch.empty(0, 0)] * len(ids)
    for batch, states in final_states(model, [ids[row] for row in asked], [wanted[row] for row in asked]):
        members = [asked[number] for number in batch]
        parts = states.split([len(wanted[row]) for row in members])
        for row, part in zip(members, parts, strict=True):
            found[row] = own_logits(model.network, part).float().log_softmax(dim=-1).cpu()
    return found


def jensen_shannon(first: Logprobs, second: Logprobs) -> Float[Tensor, "token"]:
    """Jensen–Shannon divergence of two distributions at each token, in bits: 0 where they are the same, 1 at most."""
    middle = torch.logaddexp(first, second) - math.log(2)
    halves = [(part.exp() * (part - middle)).nan_to_num(0.0).sum(dim=-1) for part in (first, second)]
    found: Tensor = (halves[0] + halves[1]) / (2 * math.log(2))
    return found.clamp(0, 1)
