"""Log-probabilities of given replies to given prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ...activations import Model, PromptsLike
from ...activations.prompts.chat import reply_ids
from ...activations.prompts.rendered import rendered
from ...activations.reading.forward import token_losses


def reply_logprobs(model: Model, prompts: PromptsLike, replies: Sequence[str]) -> list[float]:
    """Natural-log probability of each reply, whole, after its prompt."""
    return token_logprobs(model, prompts, [reply_ids(model.tokenizer, text) for text in replies])


def token_logprobs(model: Model, prompts: PromptsLike, replies: Sequence[Sequence[int]]) -> list[float]:
    """Natural-log probability of each reply, given as token ids, after its prompt; of an empty one 0.

    What prompts share is computed once where the model allows it.
    Raises DefectionError naming a prompt that does not fit the model's context with its reply.
    """
    rows = rendered(model, prompts, reply_tokens=[len(said) for said in replies])
    ids = [(*row.ids, *said) for row, said in zip(rows, replies, strict=True)]
    said = [range(len(row.ids), len(whole)) for row, whole in zip(rows, ids, strict=True)]
    return [-float(losses.sum()) for losses in token_losses(model, ids, said)]
