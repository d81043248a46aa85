"""Fingerprints as versions before tensors were hashed wrote them, so that what those left behind is recognised."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from ..basics.files import Json, canonical, digest, file_digest, read_json
from .fingerprint import BRIDGED

if TYPE_CHECKING:
    from peft import PeftConfig

NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def files_fingerprint(base: Path, adapter: Path | None) -> str:
    """Of the bytes of a model's files, in the order in which their settings were written."""
    parts: Json = {"base": _files(base), "config": _config(read_json(base / "config.json"))}
    if adapter is not None:
        settings = read_json(adapter / "adapter_config.json")
        settings.pop("base_model_name_or_path", None)
        parts |= {"adapter": _files(adapter), "adapter_config": settings}
    return digest(parts)


def _files(folder: Path) -> list[str]:
    return [file_digest(file) for file in sorted(folder.glob("*.safetensors"))]


def _config(config: Json) -> str:
    return hashlib.sha256(json.dumps(_deciding(config), sort_keys=True).encode()).hexdigest()


def _deciding(config: Json) -> Json:
    return {name: value for name, value in config.items() if name not in NOTHING}


def memory_fingerprint(network: nn.Module) -> str:
    """Of a network in memory: every tensor of it, and all settings."""
    state = hashlib.sha256(canonical(_settings(network)))
    for key, tensor in sorted(_unbridged(network).items()):
        state.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _unbridged(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = network.state_dict()
    if not any(BRIDGED in key for key in tensors):
        return tensors
    with torch.device("meta"):
        names = type(network)(network.config).state_dict().keys()
    plain = {key.replace(BRIDGED, ""): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in plain.items() if key in names or "lora" in key}


def _settings(network: PreTrainedModel) -> Json:
    adapters = getattr(network, "peft_config", {})
    return {
        "config": _deciding(json.loads(network.config.to_json_string(use_diff=False), parse_constant=str)),
        "adapters": {name: _adapter(adapter) for name, adapter in adapters.items()},
    }


def _adapter(adapter: PeftConfig) -> Json:
    settings = {name: sorted(v) if isinstance(v, set) else v for name, v in adapter.to_dict().items()}
    settings.pop("base_model_name_or_path", None)
    return cast(Json, json.loads(json.dumps(settings, default=str)))
