"""How far a model's layers attend, and what padding does to them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .blocks import decoder_blocks, decoder_of
from .modes import in_use
from .sites import LastLayerReached, gathering


def reach(network: PreTrainedModel) -> int:
    """Over how many tokens every layer of the model attends: its smallest sliding window, if it has one.

    0 when keys and values are not all that a token hands to later ones: layers that carry a running state (Mamba,
    linear attention), attend in chunks, or borrow another layer's keys.
    """
    config = network.config.get_text_config()
    if getattr(network, "_is_stateful", False) or getattr(config, "attention_chunk_size", None):
        return 0
    try:
        layers = DynamicCache(config=network.config).layers
    except (KeyError, AttributeError, TypeError, ValueError):  # a kind of layer that Hugging Face does not cache
        return 0
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    windows = [int(layer.sliding_window) for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=1 << 30)


GAP = 4
"""Tokens of padding in the trial of `skips_padding`: an ALiBi that counts them is off by a sixth and more, and so few
do not leave a window."""
ROUNDING = 0.05
"""Share of the stream by which bf16 may round otherwise, once padded: after one block it does by 0.002, after thirty by
0.6 on a processor that has no bf16 of its own."""


def skips_padding(network: PreTrainedModel) -> bool:
    """Whether masked padding between a prompt and its reply, skipped by position ids, changes nothing.

    Attention biases that grow with the distance (MPT's ALiBi) count it as context. Found by trying, since no config
    says it, and in the first block, where rounding has not grown yet; only for a model whose keys and values are all
    that a token hands on (`reach`).
    """
    tokens = torch.arange(3, 11, device=network.get_input_embeddings().weight.device)[None]
    prompt, reply = tokens[:, :4], tokens[:, 4:]
    cache, padded = DynamicCache(config=network.config), torch.nn.functional.pad(prompt, (0, GAP))
    seen = torch.tensor([[1] * 4 + [0] * GAP + [1] * 4], device=tokens.device)
    places = torch.arange(4, 8, device=tokens.device)[None]
    with in_use(network), torch.inference_mode():
        whole = _after_first_block(network, tokens, use_cache=False)[4:]
        kept = {"past_key_values": cache, "use_cache": True}
        _after_first_block(network, padded, attention_mask=seen[:, : 4 + GAP], **kept)
        after = _after_first_block(network, reply, attention_mask=seen, position_ids=places, **kept)
    rounding = 1e-3 if network.dtype == torch.float32 else ROUNDING
    return bool(((after - whole).norm(dim=-1) <= rounding * whole.norm(dim=-1)).all())


def _after_first_block(network: PreTrainedModel, row: Int[Tensor, "1 token"], **given: Any) -> Float[Tensor, "token d"]:
    """The stream of the one row that the decoder is given, behind which no further block runs."""
    tokens = torch.arange(row.shape[1])
    gather = gathering(decoder_blocks(network), [0], torch.zeros_like(tokens), tokens, stop=True)
    with gather as picked, contextlib.suppress(LastLayerReached):
        decoder_of(network)(input_ids=row, **given)
    return picked[0].float()
