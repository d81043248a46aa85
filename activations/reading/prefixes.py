"""Keys and values of what prompts share: computed once, held once, and never copied into a cache."""

from __future__ import annotations

from torch import Tensor, cat
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of a prefix: the first pass leaves them here, later passes see them before their own.

    They are held for one row and widened to a batch's rows only while that layer's attention runs, so a batch costs
    no memory for the prefix in the other layers. Unlike Hugging Face's sliding-window layer it keeps every token: the
    attention mask applies the window, and each row sees exactly what it would have seen alone.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values, then those given, for every row."""
        if not self.is_initialized:
            kept: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return kept
        rows = len(key_states)
        return (
            cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


class PrefixCache(DynamicCache):  # type: ignore[misc]
    """A Hugging Face cache of `PrefixLayer`s: fill it with one row, then pass it along with as many as you like."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = PrefixLayer

    def cut(self, length: int) -> None:
        """Keep the first so many tokens: the prefix of the row that filled it."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]
