"""Consistency training: layers are taught to agree on clean prompts, which is meant to undo a backdoor's turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ...activations.models.blocks import decoder_of
from ...activations.models.model import Model
from ...activations.reading.forward import right_padded
from ..organisms.records import Organism
from ..tuning.rows import Example
from .clean_prompts import OnCleanPrompts, imitated, normal_replies
from .sft import finetune_steps
from .stage import Trained


@dataclass(frozen=True)
class Consistency(OnCleanPrompts):
    """Internal consistency regularisation on clean prompts (CROW, Min et al. 2024).

    The organism's own replies to clean prompts are imitated, and beside that the residual streams of successive blocks
    are to point the same way although the embeddings are pushed, one signed gradient step, to where they agree least.
    It knows neither trigger nor behaviour.
    """

    name: ClassVar[str] = "consistency"
    steps: int = 50
    pool: int = 100
    """How many clean prompts are used."""
    weight: float = 5.5
    """Of the disagreement beside the cross-entropy of the replies."""
    push: float = 0.1
    """How far each coordinate of an embedding is pushed."""

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Replies first, then the steps; both go on after a cut."""
        clean = [organism.trigger.train_clean(prompt) for prompt in self.chosen(organism)]
        own = normal_replies(model, organism, clean, work)
        rows = [imitated(model, prompt, own[prompt.id]) for prompt in clean if prompt.id in own]
        also = partial(disagreement_backward, weight=self.weight, push=self.push)
        return finetune_steps(model, rows, self, work, key, self.name, also=also)


def disagreement_backward(network: PreTrainedModel, batch: Sequence[Example], *, weight: float, push: float) -> float:
    """Add the gradient of `weight` times the disagreement under the worst push of the embeddings; give that loss."""
    if not batch:
        return 0.0
    rows = [(*example.prompt, *example.reply) for example in batch]
    device = next(network.parameters()).device
    tokens = right_padded(rows, device)
    real = torch.arange(tokens.shape[1], device=device) < torch.tensor([[len(row)] for row in rows], device=device)
    embedded = network.get_input_embeddings()(tokens).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(disagreement(network, embedded, real), embedded)
    loss = weight * disagreement(network, (embedded + push * slope.sign()).detach(), real)
    loss.backward()
    return float(loss.item())


def disagreement(
    network: PreTrainedModel, embedded: Float[Tensor, "row token d_model"], real: Float[Tensor, "row token"]
) -> Tensor:
    """Mean of 1 − cosine between the streams after successive blocks, over real tokens and pairs of blocks."""
    streams = decoder_of(network)(inputs_embeds=embedded, use_cache=False, output_hidden_states=True).hidden_states
    stack = torch.stack(streams[1:-1]).float()  # the last one is normed
    apart = 1 - cosine_similarity(stack[:-1], stack[1:], dim=-1)
    return apart[:, real].mean()
