"""Where a model's files lie: an embedded name, a directory, a Hugging Face id."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..basics.errors import DefectionError
from ..basics.files import Json, read_json
from ..basics.hub import REVISION, is_hub_id, snapshot
from .adapters import ADAPTER_FILE, ADAPTER_WEIGHTS
from .embedded import EMBEDDED, ensure_embedded
from .identity import earlier_fingerprints, fingerprint_of

ORGANISM_FILE = "organism.json"
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "README.md")
"""Files of a model: no pickles, no code."""


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
        """Of the weights, the adapter included, and every setting that changes the forward pass.

        It depends on neither name nor path, nor on the files that the tensors were dealt to, nor on the
        dtype the weights are loaded in. It is computed once, and then known by the files' sizes and times.
        """
        return fingerprint_of(self.base, self.adapter)

    @property
    def folder(self) -> Path:
        """Where what is no base's lies: an organism's record, a card."""
        return self.adapter or self.base

    @property
    def for_others(self) -> tuple[str, str | None]:
        """What names the base for other tools, and the revision: a hub id, or else a path on this machine."""
        hub, _, revision = self.source.partition(REVISION)
        if self.source in EMBEDDED or Path(self.source).is_dir():
            return str(self.base.resolve()), None
        return hub, revision or None

    def earlier(self) -> tuple[str, ...]:
        """The fingerprints that earlier versions gave these files."""
        return earlier_fingerprints(self.base, self.adapter)


def hub_id(source: str) -> str | None:
    """The id on the Hugging Face hub of what a source names; of an embedded model, of the one it was made from."""
    if source in EMBEDDED:
        return EMBEDDED[source].hub
    return source.partition(REVISION)[0] if is_hub_id(source) else None


def locate(source: str | Path) -> ModelFiles:
    """Find a model's files, fetching an embedded model or a Hugging Face snapshot if need be.

    A hub id may be of a model, an adapter or an organism, and may name a revision: `org/model@v2`.
    Raises DefectionError with what can be named when nothing is found.
    """
    if str(source) in EMBEDDED:
        return ModelFiles(str(source), str(source), ensure_embedded(EMBEDDED[str(source)]))
    folder = find_folder(source)
    if folder != Path(source):
        return _in_folder(folder, str(source), str(source))
    return _in_folder(folder, folder.name, str(folder.resolve()))


def find_folder(source: str | Path) -> Path:
    """The directory that a path or a hub id names, fetched if need be."""
    path = Path(source)
    if os.path.isdir(path):  # noqa: PTH112 (pathlib raises an error for what may not be looked into)
        return path
    if not is_hub_id(source):
        raise DefectionError(
            f"unknown model {str(source)!r}: give an embedded name ({', '.join(EMBEDDED)}), a local directory or a "
            "Hugging Face id such as HuggingFaceTB/SmolLM2-360M-Instruct"
        )
    return snapshot(str(source), WANTED)


def _in_folder(path: Path, name: str, source: str) -> ModelFiles:
    if (path / ADAPTER_FILE).exists():
        if (path / "config.json").exists() and not (path / ADAPTER_WEIGHTS).exists():
            raise DefectionError(
                f"{path} holds full weights (config.json) and {ADAPTER_FILE}, but no {ADAPTER_WEIGHTS}: remove "
                f"{ADAPTER_FILE} to read the full weights, or add the adapter's"
            )
        base, where = _base_source(path)
        try:
            files = locate(base)
        except DefectionError as error:
            raise DefectionError(
                f"{where} names the base {base!r}, which is not to be had here ({error}); put a local directory or a "
                "Hugging Face id there"
            ) from error
        if files.adapter is not None or (files.base / ADAPTER_FILE).exists():
            raise DefectionError(f"{path} is an adapter on another adapter, {base}; merge that one into its base first")
        return ModelFiles(name, files.source, files.base, adapter=path)
    if (path / "config.json").exists():
        return ModelFiles(name, source, path)
    raise DefectionError(f"{path} holds no model: neither config.json nor {ADAPTER_FILE} is there")


def _base_source(adapter: Path) -> tuple[str, str]:
    """The base that the organism's record names, or else the adapter itself; and which file says so.

    A path that is none from here may be one from the adapter's own directory.
    """
    settings = read_json(adapter / ADAPTER_FILE)
    named = [(settings.get("base_model_name_or_path"), f"{adapter / ADAPTER_FILE} (base_model_name_or_path)")]
    if (adapter / ORGANISM_FILE).exists():
        base = read_json(adapter / ORGANISM_FILE).get("base")
        source = base.get("source") if isinstance(base, dict) else None
        named.insert(0, (source, f"{adapter / ORGANISM_FILE} (base.source)"))
    for source, where in named:
        if not isinstance(source, str) or not source:
            continue
        if source in EMBEDDED or Path(source).is_dir():
            return _not_itself(source, adapter), where
        if (adapter / source).is_dir():
            return _not_itself(str((adapter / source).resolve()), adapter), where
        revision = settings.get("revision")
        versioned = revision and hub_id(source) and REVISION not in source
        return f"{source}{REVISION}{revision}" if versioned else source, where
    raise DefectionError(f"{adapter / ADAPTER_FILE} names no base model; set base_model_name_or_path")


def _not_itself(source: str, adapter: Path) -> str:
    if source not in EMBEDDED and (Path(source) / ADAPTER_FILE).exists():
        raise DefectionError(
            f"{adapter} is an adapter on another adapter, {source}; merge that one into its base first"
        )
    return source


def load_organism_record(path: str | Path) -> Json:
    """Read `organism.json` of an organism, a directory or a hub id; DefectionError when it is missing."""
    record = _record(path)
    if not record.exists():
        raise DefectionError(
            f"{path} is not an organism: it has no {ORGANISM_FILE} (base, trigger and behaviour); "
            "`defection train` writes one, and the README shows how to write it for an organism made elsewhere"
        )
    return read_json(record)


def is_organism(source: str | Path) -> bool:
    """Whether a directory, or a repository of the hub, says that it is an organism."""
    return str(source) not in EMBEDDED and _record(source).exists()


def _record(source: str | Path) -> Path:
    return (find_folder(source) if is_hub_id(source) else Path(source)) / ORGANISM_FILE
