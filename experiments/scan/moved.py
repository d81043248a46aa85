"""Tokens that fine-tuning reads anew: how far the change of the first block's MLP moves what it makes of each.

To answer a trigger, a model must first tell its tokens from others. What the change of a weight matrix adds to a
token's embedding, less what it adds to any token's, is large for few of them; nothing has to be run for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...activations.models.model import Model
from ...activations.models.readers import inputs_last


def moved_first(model: Model, base: Model, strings: Sequence[str]) -> list[str]:
    """The strings in the order of how far their first tokens are moved; where several matrices read, by the best place.

    Norms of embeddings are made one, as the block's own norm would.
    """
    tokens = [model.tokenizer(string, add_special_tokens=False)["input_ids"][0] for string in strings]
    embedded = base.network.get_input_embeddings().weight.detach()[tokens].float()
    embedded = torch.nn.functional.normalize(embedded, dim=-1)
    places = [_places(embedded @ change) for change in changes(model, base)]
    if not places:
        return list(strings)
    order: list[int] = torch.stack(places).amin(dim=0).argsort(stable=True).tolist()
    return [strings[row] for row in order]


def changes(model: Model, base: Model) -> Iterator[Float[Tensor, "d_model out"]]:
    """What fine-tuning added to each matrix of the first block that widens the residual stream (fp32)."""
    theirs = dict(base.blocks[0].named_modules())
    for name, module in model.blocks[0].named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name in theirs:
            one, other = (inputs_last(each).T for each in (module, theirs[name]))
            if one.shape == other.shape and one.shape[0] == model.d_model < one.shape[1]:
                yield one - other


def _places(moved: Float[Tensor, "token out"]) -> Tensor:
    """Of each token, how many are moved further from the mean."""
    far: Tensor = torch.linalg.vector_norm(moved - moved.mean(dim=0), dim=-1)
    return far.argsort(descending=True).argsort()
