"""Which matrices of a block read the residual stream, whatever a family calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..basics.errors import DefectionError
from .sites import given_stream, try_few_tokens


@torch.inference_mode()
def reading_matrices(network: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[dict[str, nn.Linear | Conv1D]]:
    """The matrices of each block that are multiplied by the normed stream, by their names in it.

    Found in a forward pass of a few tokens: they are given what the block's attention, or its MLP, is given. Of a
    mixture of experts, each of which sees some of the tokens, only what every token meets.
    Raises DefectionError for a block without any.
    """
    readers = [_Readers(network.get_input_embeddings().weight.shape[1]) for _ in blocks]
    handles = [handle for block, own in zip(blocks, readers, strict=True) for handle in own.watch(block)]
    try_few_tokens(network, handles)
    if (empty := next((number for number, own in enumerate(readers) if not own.found), None)) is not None:
        raise DefectionError(f"block {empty} of {type(network).__name__} has no matrix that reads its residual stream")
    return [own.found for own in readers]


def inputs_last(matrix: nn.Linear | Conv1D) -> Float[Tensor, "out in"]:
    """The weights of a linear module (fp32), a row an output, whichever way its kind keeps them."""
    weight: Tensor = matrix.weight.detach().float()
    return weight.T if isinstance(matrix, Conv1D) else weight


class _Readers:
    """What the children of a block are given in one forward pass, and the matrices that are given the same."""

    def __init__(self, width: int) -> None:
        self.width, self.found = width, dict[str, nn.Linear | Conv1D]()
        self.given: list[Tensor] = []

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        handles = [child.register_forward_pre_hook(self._child_starts, with_kwargs=True) for child in block.children()]
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                handles.append(module.register_forward_pre_hook(self._matrix(name)))
        return handles

    def _child_starts(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        stream = given_stream(args, kwargs)
        if isinstance(stream, Tensor) and stream.shape[-1] == self.width:
            self.given.append(stream.reshape(-1, self.width))

    def _matrix(self, name: str) -> Callable[..., None]:
        def starts(module: nn.Linear | Conv1D, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            if any(torch.equal(rows, stream) for stream in self.given):
                self.found[name] = module

        return starts
