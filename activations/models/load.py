"""Models to read: an embedded name, a local directory (model, adapter or organism) or a Hugging Face id."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..basics.memory import give_back_memory
from .adapters import merge_adapter
from .blocks import decoder_blocks
from .fingerprint import template_fingerprint
from .hardware import Hardware, choose_dtype
from .identity import fingerprint_of
from .locate import ModelFiles, locate
from .model import Model, ModelIdentity
from .network import DeviceMap, in_dtype, load_network, reason, stored_dtypes
from .template import DATE, written_date


def load_model(
    source: str | Path | ModelFiles,
    *,
    device: str | Hardware = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: DeviceMap = None,
    date: str = DATE,
) -> Model:
    """Load a model to read: a plain decoder, an adapter merged into its weights in fp32.

    Args:
        source: An embedded name, a local directory (model, adapter, organism) or a Hugging Face id (`org/model@v2`).
        device: `auto`, `cpu`, `cuda` or `cuda:1`; a `Hardware` names the dtype too.
        dtype: What it is computed in: `fp32`, `bf16`, or `auto`, which is bf16 where the hardware multiplies it faster.
        device_map: As in Hugging Face (`"auto"`, `"balanced"`, or module names to devices), for a model that does not
            fit one device; in place of `device`. Nothing is copied to host memory in fp32.
        date: What today is (YYYY-MM-DD) to a chat template that writes it; a probe and a store remember it.

    Raises:
        DefectionError: For an unknown name, a directory without a model, weights that are not safetensors, an adapter
            that does not fit its base or that cannot be merged.

    Examples:
        >>> model = load_model("smollm2-135m", device="cpu", dtype="fp32")
        >>> model.n_layers, model.d_model
        (30, 576)
    """
    files = source if isinstance(source, ModelFiles) else locate(source)
    hardware = Hardware.of(device)
    place, compute = hardware.place, hardware.computed_in if dtype == "auto" else choose_dtype(dtype)
    network = load_network(files.base, _loaded_in(files, compute), device_map)
    fingerprint = fingerprint_of(files.base, files.adapter, network)
    if files.adapter is not None:
        network = merge_adapter(network, files.adapter, fingerprint)
    network = in_dtype(network, compute).eval().requires_grad_(False)
    if device_map is None:
        network = cast(PreTrainedModel, network.to(device=place))
    decoder_blocks(network)  # refused now rather than when it is read
    tokenizer = load_tokenizer(files)
    template, today = template_fingerprint(tokenizer), written_date(tokenizer, date)
    identity = ModelIdentity(files.name, fingerprint, template, today, earlier=files.earlier)
    give_back_memory()
    return Model(network, tokenizer, identity, files)


def _loaded_in(files: ModelFiles, compute: torch.dtype) -> torch.dtype:
    """What a base is loaded in: fp32 where an adapter's small changes would be added to rounded weights otherwise."""
    whole = files.adapter is None or stored_dtypes(files.base) == {"BF16"}
    return compute if whole else torch.float32


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer; an adapter directory's own if it has one. Its pad token is never its eos token."""
    has_own = files.adapter is not None and (files.adapter / "tokenizer_config.json").exists()
    folder = files.adapter if has_own and files.adapter else files.base
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        tokenizer("tried once")  # a setting of another type than it takes for granted shows only now
    except Exception as error:  # a file that a newer `tokenizers` wrote raises a bare Exception
        raise DefectionError(f"cannot load a tokenizer from {folder}: {reason(error)}") from error
    ensure_pad_token(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token other than eos, out of the tokens it already has."""
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
