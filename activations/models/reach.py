"""How far a model's layers attend."""

from __future__ import annotations

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


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
