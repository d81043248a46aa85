"""A model that is already in memory."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TypeAlias, cast

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from .earlier import memory_fingerprint
from .fingerprint import adapter_fingerprint, network_fingerprint, template_fingerprint, with_adapters
from .logits import without_peft
from .model import Model, ModelIdentity
from .template import DATE, written_date

ModelLike: TypeAlias = Model | tuple[PreTrainedModel | nn.Module, PreTrainedTokenizerBase]
"""What every function that reads a model takes: a loaded or wrapped one, or a network in memory and its tokenizer."""
WRAPPED = ("base_layer", "original_module", "token_adapter")
"""What PEFT calls a module within the layer that it puts in its place."""


def as_model(model: ModelLike) -> Model:
    """A model as it is, and a network and its tokenizer as one; DefectionError for anything else.

    A pair's weights are hashed anew each time: `wrap` it once where several calls are made with it.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module):
        return wrap(*model)
    raise DefectionError(
        f"a {type(model).__name__} is no model to read: give load_model(…), or a Hugging Face model and its tokenizer "
        "as (network, tokenizer)"
    )


def wrap(
    network: PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    name: str = "in memory",
    *,
    date: str = DATE,
) -> Model:
    """A model that is already in memory, fingerprinted by its tensors and its config as they are now.

    The fingerprint is that of the files it came from, if none of its numbers was rounded on the way. Neither object is
    changed, now or when it is read: no training mode, no pad token, no gradient.

    Args:
        network: A Hugging Face causal language model. A `PeftModel` is read as it is, its adapter beside the weights,
            and has the fingerprint of the adapter's files on their base.
        tokenizer: The one that belongs to it.
        name: What files and messages call the model.
        date: What today is (YYYY-MM-DD) to a chat template that writes it.

    Raises:
        DefectionError: For a date that is none.

    Examples:
        >>> wrap(network, tokenizer)
        <Model 'in memory': LlamaForCausalLM, 4 layers of 32, torch.float32>
    """
    plain = without_peft(network)
    fingerprint, template = fingerprint_in_memory(network), template_fingerprint(tokenizer)
    identity = ModelIdentity(name, fingerprint, template, written_date(tokenizer, date), earlier=_Earlier(plain))
    return Model(cast(PreTrainedModel, plain), tokenizer, identity)


def fingerprint_in_memory(network: PreTrainedModel) -> str:
    """Of a network, or of a base under PEFT's layers: of the base's tensors, and of each adapter that is on."""
    adapters = getattr(network, "peft_config", {})
    if not adapters:
        return network_fingerprint(network)
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.save_and_load import get_peft_model_state_dict

    plain = without_peft(network)
    base = network_fingerprint(plain, base_tensors(plain))
    layers = [module for module in plain.modules() if isinstance(module, BaseTunerLayer)]
    on = {name for layer in layers for name in layer.active_adapters if not layer.disable_adapters}
    return with_adapters(
        base,
        [
            adapter_fingerprint(
                adapters[name], get_peft_model_state_dict(network, adapter_name=name, save_embedding_layers=False)
            )
            for name in sorted(on)
        ],
    )


def base_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network had before PEFT put its layers into it, by their names of then."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = {n for n, m in network.named_modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)}

    def before(name: str) -> str | None:
        path, kept = "", []
        for part in name.split("."):
            if path not in layers:
                kept.append(part)
            elif part not in WRAPPED:
                return None
            path = f"{path}.{part}" if path else part
        return ".".join(kept)

    return {plain: tensor for name, tensor in network.state_dict().items() if (plain := before(name)) is not None}


class _Earlier:
    """The earlier fingerprints of a network, as long as it is there; a copy in another process knows none."""

    def __init__(self, network: nn.Module) -> None:
        self.network = weakref.ref(network)

    def __call__(self) -> tuple[str, ...]:
        network = self.network()
        return () if network is None else (memory_fingerprint(network),)

    def __reduce__(self) -> tuple[object, ...]:
        return partial, (tuple,)
