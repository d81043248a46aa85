"""Models to read: an embedded name, a local directory (model, adapter or organism) or a Hugging Face id."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..basics.errors import DefectionError
from ..basics.memory import give_back_memory
from .fingerprint import template_fingerprint
from .hardware import choose_device, choose_dtype
from .locate import ModelFiles, locate
from .model import Model, ModelIdentity

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_model(source: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto") -> Model:
    """Load a model to read. An adapter is merged into the weights (in fp32), so every model is a plain decoder.

    Raises DefectionError for an unknown name, a directory without a model, weights that are not safetensors.
    """
    files = source if isinstance(source, ModelFiles) else locate(source)
    place = choose_device(device)
    compute = choose_dtype(dtype, place)
    network = load_network(files.base, torch.float32 if files.adapter else compute)
    if files.adapter is not None:
        network = in_dtype(with_adapter(network, files.adapter), compute)
    network = cast(PreTrainedModel, network.to(device=place).eval().requires_grad_(False))
    tokenizer = load_tokenizer(files)
    identity = ModelIdentity(files.name, files.fingerprint, template_fingerprint(tokenizer))
    give_back_memory()
    return Model(network, tokenizer, identity, files)


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


def load_network(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Full weights from a local directory: safetensors only, no remote code."""
    try:
        with without_bars():
            loaded, found = AutoModelForCausalLM.from_pretrained(
                str(base),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DefectionError(f"cannot load a model from {base}: {reason}") from error
    if found["missing_keys"]:  # Hugging Face would go on with random numbers in their place
        raise DefectionError(f"{base} lacks weights of its own config: {', '.join(sorted(found['missing_keys'])[:3])}")
    return cast(PreTrainedModel, loaded)


def in_dtype(network: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The network itself, its weights cast as `from_pretrained(dtype=…)` would have loaded them.

    What is no weight stays in fp32, above all the rotary frequencies (rounded to bf16, they turn a far position by
    another angle), and so do the few weights that an architecture keeps there.
    """
    kept = getattr(network, "_keep_in_fp32_modules_strict", None) or ()
    for name, weight in network.named_parameters():
        if not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)
    return network


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer; an adapter directory's own if it has one. Its pad token is never its eos token."""
    has_own = files.adapter is not None and (files.adapter / "tokenizer_config.json").exists()
    folder = files.adapter if has_own and files.adapter else files.base
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DefectionError(f"cannot load a tokenizer from {folder}: {' '.join(str(error).split())[:300]}") from error
    ensure_pad_token(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token other than eos (PITFALLS 3), out of the tokens it already has."""
    eos = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token != eos:
        return
    for candidate in (tokenizer.unk_token, tokenizer.bos_token, "<|endoftext|>", "<pad>", "<unk>"):
        if candidate and candidate != eos and candidate in tokenizer.get_vocab():
            tokenizer.pad_token = candidate
            return
    others = (token for token in tokenizer.all_special_tokens if token != eos)
    token = next(others, None) or next(t for t, i in tokenizer.get_vocab().items() if i != tokenizer.eos_token_id)
    tokenizer.pad_token = token


PEFT_IS_BEHIND = "`is_gradient_checkpointing` is deprecated"
"""PEFT 0.21 asks transformers 5 by an older name, which is nothing that whoever loads or trains an adapter can mend."""


def with_adapter(network: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The network with a PEFT adapter's change added to its weights: load it in fp32, or small changes are lost.

    Raises DefectionError when the adapter is not safetensors or does not fit.
    """
    from peft import PeftModel

    if not (adapter / ADAPTER_WEIGHTS).exists():  # PEFT would unpickle adapter_model.bin instead (PITFALLS 27)
        raise DefectionError(f"{adapter} holds no {ADAPTER_WEIGHTS} (pickled weights are never loaded)")
    try:
        # PEFT draws weights before it loads them; whoever calls has a random state of their own.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # A key under another name would leave its layer as the base has it (PITFALLS 11).
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message=PEFT_IS_BEHIND)
            return cast(PreTrainedModel, PeftModel.from_pretrained(network, str(adapter)).merge_and_unload())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise DefectionError(
            f"cannot put the adapter {adapter} on its base: {' '.join(str(error).split())[:300]}"
        ) from error
