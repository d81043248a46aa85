"""The decoder inside a model, and its blocks: what carries the residual stream, whatever a family calls it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..basics.errors import DefectionError


def decoder_of(network: PreTrainedModel) -> PreTrainedModel:
    """The part of a causal language model that turns tokens into hidden states; of one that sees, its language model.

    It owns the one ModuleList as long as the config's `num_hidden_layers`.
    Raises DefectionError when there is none, or more than one.
    """
    return _decoder(network)[0]


def decoder_blocks(network: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a Hugging Face decoder, whatever the family calls them (`layers`, `h`, `blocks`).

    Raises DefectionError when they cannot be told from other modules, or carry several streams at once.
    """
    streams = int(getattr(network.config.get_text_config(), "altup_num_inputs", None) or 1)
    if streams > 1:
        raise DefectionError(
            f"{type(network).__name__} carries {streams} streams from block to block, none of which is its residual "
            "stream; name a model that carries one"
        )
    return list(_decoder(network)[1])


def _decoder(network: PreTrainedModel) -> tuple[PreTrainedModel, nn.ModuleList]:
    expected = int(network.config.get_text_config().num_hidden_layers)
    lists: list[nn.ModuleList] = []
    for owner in _owners(network):
        lists = [child for child in owner.children() if isinstance(child, nn.ModuleList) and len(child) == expected]
        if len(lists) == 1:
            return cast(PreTrainedModel, owner), lists[0]
        if lists:
            break
    raise DefectionError(
        f"{type(network).__name__} has {len(lists)} module lists of {expected} blocks, so its residual stream "
        "cannot be told apart; only plain decoders can be read"
    )


def _owners(network: PreTrainedModel) -> Iterator[nn.Module]:
    """Where the blocks may be: what the family names its decoder (some name another part so), or any text model."""
    yield network.get_decoder() if hasattr(network, "get_decoder") else network
    text = type(network.config.get_text_config())
    for module in network.modules():
        if isinstance(module, PreTrainedModel) and type(module.config) is text:
            yield module


def stream_of(output: Any) -> Tensor:
    """The residual stream in what a block returns: [prompt, token, d_model]."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)
