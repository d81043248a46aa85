"""Keys and values of what prompts share: computed once, held once, and never copied into a cache."""

from __future__ import annotations

from torch import Tensor, cat
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PrefixLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of a prefix: the first pass leaves them here, later passes see them before their own.

    They are held for one row and widened to a batch's rows only while that layer's attention runs, so a batch costs
    no memory for the prefix in the other layers (those of `PrefixCache.behind` hold every row's). Unlike Hugging Face's
    sliding-window layer it keeps every token: the attention mask applies the window, and each row sees exactly what it
    would have seen alone.
    """

    keys: Tensor
    values: Tensor
    grows = False
    """Whether the next pass is kept, too."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values, then those given, for every row."""
        if not self.is_initialized:
            kept: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return kept
        rows = len(key_states)
        both = (
            cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )
        if self.grows:
            self.keys, self.values = both
            self.grows = False
        return both


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

    def keep_next(self) -> None:
        """The next pass is kept behind what is there, row for row, to go on from."""
        for layer in self.layers:
            layer.grows = True

    def behind(self) -> PrefixCache:
        """A cache that the next pass fills with its rows behind this prefix, to go on from; this one stays as it is."""
        longer = PrefixCache()
        for layer in self.layers:
            kept = PrefixLayer()
            if layer.is_initialized:
                kept.lazy_initialization(layer.keys, layer.values)
                kept.keys, kept.values, kept.grows = layer.keys, layer.values, True
            longer.layers.append(kept)
        return longer
