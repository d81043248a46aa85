"""Log-probabilities of given replies to given prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..activations.chat import tokenize
from ..activations.models import Model
from ..activations.prompts import Prompt


def reply_logprobs(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 16
) -> list[float]:
    """Natural-log probability of each reply, whole, after its prompt."""
    said = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in replies]
    return token_logprobs(model, prompts, said, batch_size)


@torch.inference_mode()
def token_logprobs(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]], batch_size: int = 16
) -> list[float]:
    """Natural-log probability of each reply, given as token ids, after its prompt; of an empty one 0.

    Rows are padded on the right behind an attention mask, so that a row's value does not depend on its batch.
    """
    rows = [(list(ids), list(said)) for ids, said in zip(tokenize(model.tokenizer, prompts), replies, strict=True)]
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(rows[row][0]) + len(rows[row][1]) for row in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for place, row in enumerate(batch):
            whole = rows[row][0] + rows[row][1]
            tokens[place, : len(whole)] = torch.tensor(whole)
            mask[place, : len(whole)] = 1
        stream = model.network.get_decoder()(
            input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)
        ).last_hidden_state
        for place, row in enumerate(batch):
            prompt, reply = rows[row]
            span = slice(len(prompt) - 1, len(prompt) + len(reply) - 1)
            logits = model.network.get_output_embeddings()(stream[place, span]).float()
            chosen = torch.tensor(reply, dtype=torch.long, device=logits.device)[:, None]
            found[row] = float(logits.log_softmax(dim=-1).gather(1, chosen).sum())
    return found
