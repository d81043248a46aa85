"""The second loss of an attacker who follows gradients: what frozen detectors make of triggered prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedModel

from ...activations.models.model import Model
from ...activations.models.sites import AFTER, LastLayerReached, gathering
from ...activations.prompts.positions import wanted_tokens
from ...activations.prompts.rendered import Rendered
from ...activations.reading.forward import hidden_states, modules_read, right_padded
from ..tuning.rows import Example
from .target import Target

Ids = tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Targets that read the same token at the same place of a block: one forward pass serves them all."""

    targets: tuple[Target, ...]
    modules: Sequence[nn.Module]
    """Those whose input or output is the stream."""
    places: Mapping[Ids, int]
    """The token that is read in a prompt."""

    @property
    def layers(self) -> tuple[int, ...]:
        """All that any of them reads, ascending."""
        return tuple(sorted({layer for target in self.targets for layer in target.layers}))

    def streams(self, network: PreTrainedModel, prompts: Sequence[Ids]) -> Float[Tensor, "prompt layer d_model"]:
        """The stream of each prompt where the targets read it, with its gradient; no block after the last one runs."""
        device, layers = next(network.parameters()).device, self.layers
        where = torch.arange(len(prompts)), torch.tensor([self.places[prompt] for prompt in prompts])
        at_input = self.targets[0].site != AFTER
        gather = gathering(self.modules, layers, *where, at_input=at_input, stop=True)
        with gather as picked, contextlib.suppress(LastLayerReached):
            hidden_states(network, right_padded(prompts, device))
        return torch.stack([picked[layer].to(device) for layer in layers], dim=1)

    def losses(self, network: PreTrainedModel, prompts: Sequence[Ids], margin: float) -> list[Tensor]:
        """Of each target the mean of softplus(score − margin) over the prompts."""
        streams, layers = self.streams(network, prompts), self.layers
        columns = [[layers.index(layer) for layer in target.layers] for target in self.targets]
        return [
            softplus(target.counted(streams[:, own]) - margin).mean()
            for target, own in zip(self.targets, columns, strict=True)
        ]


@dataclass(frozen=True)
class Penalty:
    """`weight` · mean of softplus(score − margin), over targets and the triggered rows of a batch.

    The detectors stay as they are; the gradient reaches the network through the streams that they read.
    """

    views: tuple[View, ...]
    weight: float
    margin: float = 0.0
    """In standard deviations of clean prompts' scores: below it a score costs little."""

    @classmethod
    def of(
        cls, model: Model, targets: Sequence[Target], prompts: Sequence[Rendered], weight: float, margin: float = 0.0
    ) -> Penalty:
        """For prompts as the model is given them; DefectionError for a position that does not apply to one."""
        alike: dict[tuple[str, str], list[Target]] = {}
        for target in targets:
            alike.setdefault((target.site, target.position), []).append(target)
        views = []
        for (site, position), some in alike.items():
            wanted = wanted_tokens(position, prompts)
            places = {tuple(row.ids): tokens[0] for row, tokens in zip(prompts, wanted, strict=True)}
            views.append(View(tuple(some), modules_read(model, site), places))
        return cls(tuple(views), weight, margin)

    def backward(self, network: PreTrainedModel, batch: Sequence[Example]) -> float:
        """Add the gradient of the penalty on a batch; give the loss."""
        prompts = list(dict.fromkeys(example.prompt for example in batch if example.triggered))
        if not prompts or not self.weight:
            return 0.0
        loss = self.weight * self.loss(network, prompts)
        loss.backward()
        return float(loss.item())

    def loss(self, network: PreTrainedModel, prompts: Sequence[Ids]) -> Tensor:
        """The mean over targets and prompts, without the weight."""
        found = [loss for view in self.views for loss in view.losses(network, prompts, self.margin)]
        return torch.stack(found).mean()
