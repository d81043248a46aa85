"""A lever folded into the weights: ablating what attention and MLP write is ablating the matrices they write with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...activations import DefectionError, Model
from ...activations.models.blocks import decoder_blocks, stream_of
from ...activations.models.sites import try_few_tokens
from .hooks import RESIDUAL, _modules, orthonormal


def orthogonalised(
    model: Model, vectors: Mapping[int, Float[Tensor, "rank d_model"]], layers: Sequence[int], place: str
) -> PreTrainedModel:
    """A copy of the network whose weights do what `Ablate(model, vectors, layers=layers, place=place)` does.

    Every matrix that writes into the stream there loses its part along the vectors, bias included: W − VᵀV W, computed
    in fp64 (weight orthogonalisation, Arditi et al. 2024). Raises DefectionError for the place `residual`, where
    earlier layers have written too, and for a family that changes what its matrices write before it is added (a norm
    behind them), where there is nothing to fold into.
    """
    if place == RESIDUAL:
        raise DefectionError(
            "an ablation of the stream itself cannot be folded into weights, since earlier layers wrote it too; "
            "fold one of attention, mlp or writes"
        )
    network = copy.deepcopy(model.network)
    modules = _modules(network, decoder_blocks(network), layers, place)
    for (layer, _), matrix in zip(modules, _matrices(network, [module for _, module in modules]), strict=True):
        basis = orthonormal(vectors[layer]).to(matrix.weight.device)
        weight = matrix.weight.data.double()
        along = (weight @ basis.mT) @ basis if isinstance(matrix, Conv1D) else basis.mT @ (basis @ weight)
        matrix.weight.data = (weight - along).to(matrix.weight.dtype)
        if matrix.bias is not None:
            bias = matrix.bias.data.double()
            matrix.bias.data = (bias - (bias @ basis.mT) @ basis).to(matrix.bias.dtype)
    return network


@torch.inference_mode()
def _matrices(network: PreTrainedModel, modules: Sequence[nn.Module]) -> list[nn.Linear | Conv1D]:
    """In each module the matrix whose product is what the module returns, found in a forward pass of a few tokens."""
    seen: dict[int, Tensor] = {}

    def keep(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        first = stream_of(output)
        if isinstance(first, Tensor):
            seen[id(module)] = first.clone()

    parts = [[part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)] for module in modules]
    watched = {id(part): part for some in (*parts, modules) for part in some}
    try_few_tokens(network, [part.register_forward_hook(keep) for part in watched.values()])
    found = []
    for module, some in zip(modules, parts, strict=True):
        whole = seen[id(module)]
        equal = (part for part in some if id(part) in seen and seen[id(part)].numel() == whole.numel())
        matrix = next((part for part in equal if torch.equal(seen[id(part)].reshape(whole.shape), whole)), None)
        if matrix is None:
            raise DefectionError(
                f"{type(network).__name__} changes what a matrix of its {type(module).__name__} writes before it is "
                "added to the stream, so the ablation cannot be folded into weights"
            )
        found.append(matrix)
    return found
