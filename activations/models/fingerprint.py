"""What tells one model from another: hashes over what decides its forward pass.

A fingerprint is of values, not of files: of every tensor its name in the network, its shape and its bytes in the
narrowest dtype that holds them exactly. So it is the same however a checkpoint is cut into files, from which folder it
is loaded, in which dtype it was stored as long as nothing was rounded, and for the network in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..basics.files import Json, digest
from .template import chat_template

if TYPE_CHECKING:
    from peft import PeftConfig

MARK = ".2"
"""Ends every fingerprint of this kind; what earlier versions wrote (`earlier.py`) has no mark."""
NOTHING = frozenset(
    (
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "num_labels",
        "pad_token_id",
        "problem_type",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
"""Settings of a config that change nothing in a forward pass, or nothing that its tensors do not show."""
BRIDGED = "._original_component"
"""What a TransformerBridge puts into the names of the parameters of the model it is given."""
PEFT_PREFIX = "base_model.model."
"""Before the names in an adapter's file; PEFT leaves it out where it puts layers straight into a model."""
SAVED = ".modules_to_save."
SAID_TWICE = (SAVED, ".original_module.")
"""In names that PEFT writes beside a module's own, where its embeddings were resized as well."""
THREADS = 4
"""Hashing leaves the interpreter free, and one core hashes more slowly than a disk reads."""


def is_earlier(fingerprint: str) -> bool:
    """Whether a version wrote it that hashed files, or settings in the order of a set."""
    return not fingerprint.endswith(MARK)


def network_fingerprint(network: PreTrainedModel, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over a network's tensors, or those given of it, and what its config decides; of no adapter on it."""
    named = named_tensors(network) if tensors is None else tensors.items()
    lasting = frozenset(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
    return digest({"tensors": tensors_digest(named, lasting), "config": deciding(network.config)}) + MARK


def with_adapters(base: str, adapters: Iterable[str]) -> str:
    """The fingerprint of a base under adapters, each by its own."""
    found = list(adapters)
    return digest({"base": base, "adapters": found}) + MARK if found else base


def adapter_fingerprint(settings: PeftConfig, tensors: Mapping[str, Tensor]) -> str:
    """Of an adapter, on disk or in memory: its tensors by their names in the file, and what its settings decide."""
    own = (name for name in tensors if not any(part in name for part in SAID_TWICE))
    named = ((name.removeprefix(PEFT_PREFIX), tensors[name]) for name in own)
    return digest({"tensors": tensors_digest(named), "config": adapter_settings(settings)}) + MARK


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network's state, by the names they had before TransformerLens bridged it.

    What Accelerate keeps on disk or in host memory for another device is read from there.
    """
    state: Mapping[str, Tensor] = network.state_dict()
    if any(BRIDGED in name for name in state):  # a bridge adds some of its own
        with torch.device("meta"):
            own = type(network)(network.config).state_dict().keys()
        plain = ((name.replace(BRIDGED, ""), tensor) for name, tensor in state.items())
        state = {name: tensor for name, tensor in plain if name in own}
    for name, tensor in state.items():
        if tensor.is_meta:
            owner, _, last = name.rpartition(".")
            hook: Any = network.get_submodule(owner)._hf_hook
            yield name, hook.weights_map[last]
        else:
            yield name, tensor


def tensors_digest(named: Iterable[tuple[str, Tensor]], lasting: Collection[int] = ()) -> str:
    """SHA-256 over tensors by name: shape and values, in the narrowest dtype that holds them.

    Those at `lasting` addresses outlive the call, so that what lies at one of them twice is one tensor of two names,
    and is read once. At any other address another tensor may lie by now.
    """
    known: dict[object, str] = {}

    def row(item: tuple[str, Tensor]) -> list[object]:
        name, tensor = item
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.data_ptr() not in lasting or not tensor.data_ptr():
            return [name, list(tensor.shape), values_digest(tensor)]
        if place not in known:
            known[place] = values_digest(tensor)
        return [name, list(tensor.shape), known[place]]

    with ThreadPoolExecutor(THREADS) as pool:
        return digest(sorted(pool.map(row, named)))


def values_digest(tensor: Tensor) -> str:
    """SHA-256 over a tensor's numbers; the same in bf16 as in fp32, if bf16 holds them all."""
    values = narrowest(tensor.detach().cpu()).contiguous()
    state = hashlib.sha256(f"{values.dtype}:".encode())
    state.update(values.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def narrowest(tensor: Tensor) -> Tensor:
    """The tensor in bf16, or else in fp16, if that changes no number of it; whatever is no float as it is."""
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16):
        return tensor
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        smaller = tensor.to(dtype)
        if torch.equal(smaller.to(tensor.dtype), tensor):
            return smaller
    return tensor


def deciding(config: PreTrainedConfig) -> Json:
    """What of a config decides the forward pass and is not as it is by default.

    Other versions of `transformers` write more settings or fewer, all of them at their defaults.
    """
    ordinary = defaults(type(config))
    found: Json = {"model_type": config.model_type}
    for name, value in config.to_dict().items():
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            found[name] = deciding(inner)
        elif name not in NOTHING and not name.startswith("_") and value != ordinary.get(name):
            found[name] = value
    kept: Json = json.loads(json.dumps(found, default=str), parse_constant=str)  # an infinite limit, say
    return kept


def defaults(kind: type[PreTrainedConfig]) -> Json:
    """The settings of a family that says none."""
    try:
        return dict(kind().to_dict())
    except (TypeError, ValueError, AttributeError):  # a family without a default model
        return {}


SHOWN_BY_TENSORS = frozenset(
    (
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "trainable_token_indices",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "peft_version",
        "auto_mapping",
        "lora_dropout",
        "runtime_config",
    )
)
"""Settings of an adapter that its tensors' names show, or that a forward pass does not meet."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Ways to set up a LoRA that take something out of the base, whenever it is put on it."""


def adapter_settings(settings: PeftConfig) -> Json:
    """What of a PEFT config decides the forward pass and is not as it is by default; sets in order."""
    given, ordinary = settings.to_dict(), type(settings)().to_dict()
    kept = {k: v for k, v in given.items() if k not in SHOWN_BY_TENSORS and v != ordinary.get(k)}
    if str(kept.get("init_lora_weights")) not in CHANGES_BASE:
        kept.pop("init_lora_weights", None)
    found: Json = json.loads(json.dumps(kept | {"peft_type": given["peft_type"]}, default=_in_order))
    return found


def _in_order(value: object) -> list[object] | str:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


PLAIN_FORMAT = "plain Human:/Assistant: format, version 1"


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that turns a prompt into token ids but the date: template, vocabulary, special tokens."""
    state = hashlib.sha256((chat_template(tokenizer) or PLAIN_FORMAT).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Padding and truncation are set by whoever tokenised last and change no prompt's ids.
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
        state.update(backend.to_str().encode())
    else:
        for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
            state.update(f"{index}:{token}\n".encode())
    return state.hexdigest()
