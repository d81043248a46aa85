"""Log-probabilities of given replies to given prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..activations.chat import reply_ids, tokenize
from ..activations.models import Model
from ..activations.prompts import Prompt


@torch.inference_mode()
def reply_logprobs(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[str], batch_size: int = 16
) -> list[float]:
    """Natural-log probability of each reply, whole, after its prompt.

    Rows are padded on the right behind an attention mask, so that a row's value does not depend on its batch.
    """
    rows = []
    for ids, text in zip(tokenize(model.tokenizer, prompts), replies, strict=True):
        rows.append((list(ids), reply_ids(model.tokenizer, text)))
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
            chosen = torch.tensor(reply, device=logits.device)[:, None]
            found[row] = float(logits.log_softmax(dim=-1).gather(1, chosen).sum())
    return found
