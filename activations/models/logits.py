"""A model's own logits: what its family does with the decoder's last hidden states, whatever that is.

A family may scale the product with the vocabulary matrix (Granite, Cohere), cap it softly (Gemma 2 and 3) or cut it, so
the model's own `forward` is run, with the states that are there already in the place of its decoder.
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from .blocks import decoder_of


def own_logits(network: PreTrainedModel, states: Float[Tensor, "state d_model"]) -> Float[Tensor, "state token"]:
    """The logits that a causal language model gives for its decoder's `last_hidden_state` at some tokens.

    Gradients flow to states and vocabulary matrix; the network, which may be a PEFT model, is left as it is.
    The dtype is the model's own: take `.float()` before a softmax.

    Examples:
        >>> states = network.model(input_ids=tokens).last_hidden_state[0]
        >>> own_logits(network, states)  # as network(input_ids=tokens).logits[0]
    """
    plain: Any = without_peft(network)
    decoder = decoder_of(plain)
    name = next(name for name, child in plain.named_children() if any(part is decoder for part in child.modules()))
    copy = object.__new__(type(plain))
    answering = _Answering(getattr(plain, name), states[None])
    copy.__dict__ = {**plain.__dict__, "_modules": {**plain._modules, name: answering}}
    # Not by `copy(…)`: hooks, such as those that move a model between devices, hold on to the network itself.
    return cast(Tensor, type(plain).forward(copy).logits[0])


def without_peft(network: nn.Module) -> nn.Module:
    """The model that a `PeftModel` wraps, adapter layers and all; any other model itself."""
    if not hasattr(network, "peft_config"):
        return network
    from peft import PeftModel

    inner: nn.Module = network.base_model.model if isinstance(network, PeftModel) else network
    return inner


class _Answering:
    """Stands where a network's decoder stands, and gives hidden states that are there already."""

    def __init__(self, module: nn.Module, states: Tensor) -> None:
        self.module, self.states = module, states

    def __call__(self, *args: object, **kwargs: object) -> _States:
        return _States(last_hidden_state=self.states)

    def __getattr__(self, name: str) -> object:
        """What the network asks of its decoder beside (a multiplier); a decoder further inside (OPT) is this, too."""
        value = getattr(self.module, name)
        return self if isinstance(value, nn.Module) else value


class _States(BaseModelOutputWithPast):  # type: ignore[misc]
    """A decoder's output that holds nothing but hidden states, whatever else a family's forward looks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
