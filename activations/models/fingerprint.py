"""What tells one model from another: hashes over what decides its forward pass."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..basics.errors import DefectionError
from ..basics.files import Json, file_digest, read_json


def _weights_digests(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DefectionError(f"{folder} holds no .safetensors weights (pickled weights are never loaded)")
    return [file_digest(file) for file in files]


def _config_digest(folder: Path) -> str:
    config = _deciding(read_json(folder / "config.json"))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _deciding(config: Json) -> Json:
    """A config without what changes nothing in a forward pass."""
    nothing = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {name: value for name, value in config.items() if name not in nothing}


PLAIN_FORMAT = "plain Human:/Assistant: format, version 1"


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that turns a prompt into token ids: template, vocabulary, special tokens."""
    state = hashlib.sha256((tokenizer.chat_template or PLAIN_FORMAT).encode())
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
