"""How far a model's layers attend, and what padding does to them."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .blocks import decoder_of
from .modes import in_use


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
change neither the kernels that a model in bf16 is multiplied by, and with them its rounding, nor leave a window."""


def skips_padding(network: PreTrainedModel) -> bool:
    """Whether masked padding between a prompt and its reply, skipped by position ids, changes nothing.

    Attention biases that grow with the distance (MPT's ALiBi) count it as context. Found by trying, since no config
    says it; only for a model whose keys and values are all that a token hands on (`reach`).
    """
    with in_use(network), torch.inference_mode():
        return _padding_changes_nothing(network)


def _padding_changes_nothing(network: PreTrainedModel) -> bool:
    decoder, device = decoder_of(network), network.get_input_embeddings().weight.device
    tokens = torch.arange(3, 11, device=device)[None]
    whole = decoder(input_ids=tokens, use_cache=False).last_hidden_state[0, 4:].float()
    cache, padded = DynamicCache(config=network.config), torch.zeros(1, 4 + GAP, dtype=torch.long, device=device)
    padded[:, :4] = tokens[:, :4]
    seen = (torch.arange(8 + GAP, device=device)[None] < 4).long()
    decoder(input_ids=padded, attention_mask=seen[:, : 4 + GAP], past_key_values=cache, use_cache=True)
    seen[:, 4 + GAP :] = 1
    places = torch.arange(4, 8, device=device)[None]
    after = (
        decoder(
            input_ids=tokens[:, 4:], attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True
        )
        .last_hidden_state[0]
        .float()
    )
    rounding = 1e-3 if network.dtype == torch.float32 else 0.05
    return bool(((after - whole).norm(dim=-1) <= rounding * whole.norm(dim=-1)).all())
