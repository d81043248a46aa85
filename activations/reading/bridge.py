"""To and from TransformerLens: a bridge as the model, a capture as an `ActivationCache`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..models.model import Model
from ..models.sites import AFTER
from ..models.wrap import wrap
from .residuals import Residuals

if TYPE_CHECKING:
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

HOOKS = {"before": ("hook_in", "hook_resid_pre"), "middle": ("hook_resid_mid",), AFTER: ("hook_out", "hook_resid_post")}
"""TransformerLens 4's names of each site, within `blocks.{layer}.`."""


def from_bridge(
    bridge: TransformerBridge, tokenizer: PreTrainedTokenizerBase | None = None, name: str | None = None
) -> Model:
    """A `TransformerBridge` as a model to read.

    The Hugging Face model inside the bridge is read, so hooks of TransformerLens that change an activation change what
    is captured; its fingerprint is that of the same weights unbridged.

    Args:
        bridge: With its weights as they were loaded.
        tokenizer: By default the bridge's own, which always puts a BOS before plain text: give the original one for a
            model without a chat template.
        name: What files call the model; by default what the bridge calls it.

    Raises:
        DefectionError: When the bridge's weights were folded or centred.

    Examples:
        >>> model = from_bridge(TransformerBridge.boot_transformers("gpt2"))  # doctest: +SKIP
    """
    if getattr(bridge, "_weights_processed", False):
        raise DefectionError(
            "the bridge's weights were processed (folded norms, centred writing weights), so its stream is not the "
            "model's; boot it again and call neither process_weights nor enable_compatibility_mode"
        )
    return wrap(bridge.original_model, tokenizer or bridge.tokenizer, name or str(bridge.cfg.model_name))


def as_activation_cache(residuals: Residuals, bridge: TransformerBridge | None = None) -> ActivationCache:
    """The residuals under TransformerLens's hook names, each [prompt, position, d_model].

    Site `after` is `blocks.{i}.hook_out` and `blocks.{i}.hook_resid_post`, `before` is `hook_in` and
    `hook_resid_pre`, `middle` is `hook_resid_mid`.

    Args:
        residuals: As `capture` gives them; with one vector a prompt, `position` has length 1.
        bridge: The `TransformerBridge` that the cache's own methods (`logit_attrs` …) consult; looking tensors up needs
            none.

    Raises:
        DefectionError: When the prompts have different numbers of vectors: the cache is rectangular.

    Examples:
        >>> cache_of_lens = as_activation_cache(capture(model, prompts))  # doctest: +SKIP

        Looking one up: `cache_of_lens["blocks.2.hook_out"]` is [prompt, position, d_model].
    """
    from transformer_lens import ActivationCache

    counts = [len(residuals.of(row)) for row in range(len(residuals))]
    uneven = [row for row, count in enumerate(counts) if count != counts[0]]
    if uneven:
        row = uneven[0]
        raise DefectionError(
            f"prompt {residuals.ids[row]!r} has {counts[row]} vectors and {residuals.ids[0]!r} has {counts[0]}; an "
            "ActivationCache is rectangular, so select prompts of equal length or a position of one vector a prompt"
        )
    cube = residuals.values.reshape(len(counts), -1, *residuals.values.shape[1:])
    named = {
        f"blocks.{layer}.{hook}": cube[:, :, column]
        for column, layer in enumerate(residuals.layers)
        for hook in HOOKS[residuals.site]
    }
    return ActivationCache(named, bridge)
