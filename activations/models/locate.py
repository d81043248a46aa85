"""Where a model's files lie: an embedded name, a directory, a Hugging Face id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..basics.errors import DefectionError
from ..basics.files import digest, read_json
from .embedded import EMBEDDED, ensure_embedded
from .fingerprint import _config_digest, _weights_digests

ORGANISM_FILE = "organism.json"


ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's weights lie on disk."""

    name: str
    source: str
    """What names the base model on any machine that can have it: embedded name, hub id, or absolute path."""
    base: Path
    """Directory with full weights, config and tokenizer."""
    adapter: Path | None = None
    """Directory with a PEFT adapter that goes on top."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the adapter included, and every setting that changes the forward pass.

        It depends on neither the name nor the path (PITFALLS 12), nor on the dtype the weights are loaded in.
        """
        parts: dict[str, Any] = {"base": _weights_digests(self.base), "config": _config_digest(self.base)}
        if self.adapter is not None:
            settings = read_json(self.adapter / ADAPTER_FILE)
            settings.pop("base_model_name_or_path", None)
            parts |= {"adapter": _weights_digests(self.adapter), "adapter_config": settings}
        return digest(parts)


def locate(source: str | Path) -> ModelFiles:
    """Find a model's files, fetching an embedded model or a Hugging Face snapshot if need be.

    Raises DefectionError with what can be named when nothing is found.
    """
    path = Path(source)
    if str(source) in EMBEDDED:
        return ModelFiles(str(source), str(source), ensure_embedded(EMBEDDED[str(source)]))
    if path.is_dir():
        return _locate_directory(path)
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise DefectionError(
            f"unknown model {str(source)!r}: give an embedded name ({', '.join(EMBEDDED)}), a local directory or a "
            "Hugging Face id such as HuggingFaceTB/SmolLM2-360M-Instruct"
        )
    return ModelFiles(str(source), str(source), _snapshot(str(source)))


def _locate_directory(path: Path) -> ModelFiles:
    if (path / ADAPTER_FILE).exists():
        source = _base_source(path)
        if (Path(source) / ADAPTER_FILE).exists():
            raise DefectionError(
                f"{path} is an adapter on another adapter, {source}; merge that one into its base first"
            )
        return ModelFiles(path.name, source, locate(source).base, adapter=path)
    if (path / "config.json").exists():
        return ModelFiles(path.name, str(path.resolve()), path)
    raise DefectionError(f"{path} holds no model: neither config.json nor {ADAPTER_FILE} is there")


def _base_source(adapter: Path) -> str:
    """The base that the organism's record names, or else the adapter itself."""
    named = [read_json(adapter / ADAPTER_FILE).get("base_model_name_or_path")]
    if (adapter / ORGANISM_FILE).exists():
        base = read_json(adapter / ORGANISM_FILE).get("base")
        named.insert(0, base.get("source") if isinstance(base, dict) else None)
    for source in named:
        if isinstance(source, str) and source:
            return source
    raise DefectionError(f"{adapter / ADAPTER_FILE} names no base model; set base_model_name_or_path")


def _snapshot(identifier: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code
    try:
        return Path(snapshot_download(identifier, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DefectionError(f"cannot fetch {identifier!r} from the Hugging Face hub: {reason}") from error


def load_organism_record(path: str | Path) -> dict[str, Any]:
    """Read `organism.json` of an organism directory; DefectionError when it is missing."""
    record = Path(path) / ORGANISM_FILE
    if not record.exists():
        raise DefectionError(
            f"{path} is not an organism: it has no {ORGANISM_FILE} (base, trigger and behaviour); "
            "`defection train` writes one, and the README shows how to write it for an organism made elsewhere"
        )
    return read_json(record)
