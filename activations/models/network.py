"""Full weights from a local directory, in the numbers they are computed in."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from ..basics.errors import DefectionError
from ..basics.files import Json, read_json

CONFIG = "config.json"
QUANTISERS = {
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum",
    "torchao": "torchao",
}
"""Who quantised a checkpoint → the module that reads it."""


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bars of `transformers` to itself."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


DeviceMap: TypeAlias = "str | dict[str, int | str | torch.device] | None"
"""As in Hugging Face: `auto`, `balanced`, or the device of each module by its name."""


def load_network(base: Path, dtype: torch.dtype, device_map: DeviceMap = None) -> PreTrainedModel:
    """Full weights from a local directory: safetensors only, no remote code.

    Raises DefectionError, in one sentence, for whatever a directory can hold that is no such model.
    """
    _refuse_unreadable(base)
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded, found = _kind(base).from_pretrained(
                str(base),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **({} if device_map is None else {"device_map": device_map}),
                **_dequantised(base),
            )
    except DefectionError:
        raise
    except Exception as error:  # of any kind: the files are somebody else's, and so are the libraries that read them
        raise DefectionError(f"cannot load a model from {base}: {reason(error)}") from error
    if found["missing_keys"]:  # Hugging Face would go on with random numbers in their place
        raise DefectionError(f"{base} lacks weights of its own config: {', '.join(sorted(found['missing_keys'])[:3])}")
    return cast(PreTrainedModel, loaded)


def reason(error: BaseException) -> str:
    """What an exception of another library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _kind(base: Path) -> Any:
    """The class that reads it: a plain decoder's, or that of a decoder which also sees."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    config = AutoConfig.from_pretrained(str(base), trust_remote_code=False, local_files_only=True)
    speaks, sees = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING, type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if config.is_encoder_decoder or not (speaks or sees):
        raise DefectionError(
            f"{base} is of the kind {config.model_type}, no decoder that goes on from a text; only decoders are read"
        )
    return AutoModelForCausalLM if speaks else AutoModelForImageTextToText


def quantisation(base: Path) -> Json | None:
    """What the config says of quantised weights; None where they are plain."""
    config = read_json(base / CONFIG) if (base / CONFIG).exists() else {}
    text = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    return found if isinstance(found, dict) else None


def _refuse_unreadable(base: Path) -> None:
    quantised = quantisation(base)
    method = str(quantised.get("quant_method")) if quantised else ""
    if quantised and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise DefectionError(
            f"{base} is quantised by a method that transformers does not know ({method}); name the model that it was "
            "made from"
        )
    package = QUANTISERS.get(method)
    if package is not None and find_spec(package) is None:
        raise DefectionError(
            f"{base} is quantised ({method}), and the package {package.replace('_', '-')} that reads it is not "
            "installed; install it, or name the model it was made from"
        )


def _dequantised(base: Path) -> Json:
    """Block-wise FP8 is multiplied by kernels of a GPU; here it is read as the numbers it stands for."""
    quantised = quantisation(base)
    if quantised is None or quantised.get("quant_method") != "fp8":
        return {}
    from transformers import FineGrainedFP8Config

    return {"quantization_config": FineGrainedFP8Config(dequantize=True)}


def in_dtype(network: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The network itself, its weights cast as `from_pretrained(dtype=…)` would have loaded them.

    What is no weight stays in fp32, above all the rotary frequencies (rounded to bf16, they turn a far position by
    another angle), and so do the few weights that an architecture keeps there.
    """
    kept = getattr(network, "_keep_in_fp32_modules_strict", None) or ()
    for name, weight in network.named_parameters():
        if weight.is_floating_point() and not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)
    return network


def stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of the tensors in a directory's files, in the words of safetensors: F32, BF16, …"""
    found: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    return found
