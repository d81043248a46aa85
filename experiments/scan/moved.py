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
    """The strings in the order of how far their tokens are moved; where several matrices read, by the best place.

    A string of several tokens counts for the sum over them, of how many standard deviations the logarithm of each lies
    above the mean of all: a trigger's tokens are all moved, and a word that shares one with it is not. Norms of
    embeddings are made one, as the block's own norm would.
    """
    matrices = [change for change in changes(model, base) if change.any()]
    if not matrices or not strings:
        return list(strings)
    spelt = [torch.tensor(ids) for ids in model.tokenizer(list(strings), add_special_tokens=False)["input_ids"]]
    tokens, at = torch.cat(spelt).unique(return_inverse=True)
    embedded = base.network.get_input_embeddings().weight.detach()[tokens].float()
    embedded = torch.nn.functional.normalize(embedded, dim=-1)
    owner = torch.repeat_interleave(torch.tensor([len(ids) for ids in spelt]))
    places = [_places(_moved(embedded @ change), at, owner) for change in matrices]
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


def _moved(added: Float[Tensor, "token out"]) -> Float[Tensor, "token"]:
    """How far each token is moved from the mean of all, in standard deviations of the logarithm."""
    far = torch.linalg.vector_norm(added - added.mean(dim=0), dim=-1).clamp_min(torch.finfo(added.dtype).tiny).log()
    scaled: Tensor = (far - far.mean()) / far.std().clamp_min(torch.finfo(far.dtype).tiny)
    return scaled


def _places(moved: Float[Tensor, "token"], at: Tensor, owner: Tensor) -> Tensor:
    """Of each string, how many others' tokens are moved further in all; `at` are all strings' tokens, `owner` whose."""
    sums = torch.zeros(int(owner[-1]) + 1).index_add_(0, owner, moved[at])
    return sums.argsort(descending=True, stable=True).argsort()
