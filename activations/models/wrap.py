"""A model that is already in memory."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..basics.files import Json, canonical
from .fingerprint import _deciding, template_fingerprint
from .logits import without_peft
from .model import Model, ModelIdentity

ModelLike: TypeAlias = Model | tuple[PreTrainedModel | nn.Module, PreTrainedTokenizerBase]
"""What every function that reads a model takes: a loaded or wrapped one, or a network in memory and its tokenizer."""
BRIDGED = "._original_component"
"""What a TransformerBridge puts into the names of the parameters of the model it is given (PITFALLS 11)."""


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


def wrap(network: PreTrainedModel | nn.Module, tokenizer: PreTrainedTokenizerBase, name: str = "in memory") -> Model:
    """A model that is already in memory, fingerprinted by its tensors and its config as they are now.

    A `PeftModel` is read as it is, its adapter beside the weights; the fingerprint covers both. Neither object is
    changed, now or when it is read: no training mode, no pad token, no gradient.
    """
    plain = without_peft(network)
    state = hashlib.sha256(canonical(_settings(plain)))
    for key, tensor in sorted(_unbridged(plain).items()):
        state.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    identity = ModelIdentity(name, state.hexdigest(), template_fingerprint(tokenizer))
    return Model(cast(PreTrainedModel, plain), tokenizer, identity)


def _unbridged(network: Any) -> dict[str, Tensor]:
    """A model's tensors by the names they had before TransformerLens bridged it, which adds some of its own."""
    tensors: dict[str, Tensor] = network.state_dict()
    if not any(BRIDGED in key for key in tensors):
        return tensors
    with torch.device("meta"):
        names = type(network)(network.config).state_dict().keys()
    plain = {key.replace(BRIDGED, ""): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in plain.items() if key in names or "lora" in key}


def _settings(network: Any) -> Json:
    """What beside its tensors decides a forward pass: the config, and that of an adapter on it (a LoRA's scaling)."""
    adapters = getattr(network, "peft_config", {})
    return {
        "config": _deciding(json.loads(network.config.to_json_string(use_diff=False))),
        "adapters": {name: _adapter_settings(adapter) for name, adapter in adapters.items()},
    }


def _adapter_settings(adapter: Any) -> Json:
    settings = {name: sorted(v) if isinstance(v, set) else v for name, v in adapter.to_dict().items()}
    settings.pop("base_model_name_or_path", None)
    return cast(Json, json.loads(json.dumps(settings, default=str)))
