"""The fingerprint of a model's files, from their record or computed now, and what earlier versions called them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from ..basics.errors import DefectionError
from ..basics.files import Json, digest, read_json
from .adapters import ADAPTER_WEIGHTS, adapter_config
from .earlier import files_fingerprint
from .fingerprint import MARK, adapter_fingerprint, network_fingerprint, tensors_digest, with_adapters
from .network import CONFIG, load_network, quantisation, stored_dtypes
from .remembered import remember, remembered

FINGERPRINT = "fingerprint"
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


def fingerprint_of(base: Path, adapter: Path | None, loaded: PreTrainedModel | None = None) -> str:
    """Of the files of a base and of an adapter on it; see `fingerprint`.

    `loaded` is the base as it was just loaded, which saves loading it for this where no number of it was rounded.
    Raises DefectionError when the files hold no such model.
    """
    known = remembered(base).get(FINGERPRINT)
    if not isinstance(known, str):
        known = _of_files(base) if quantisation(base) else network_fingerprint(_exact(base, loaded))
        remember(base, **{FINGERPRINT: known})
    return with_adapters(known, [] if adapter is None else [of_adapter(adapter)])


def earlier_fingerprints(base: Path, adapter: Path | None) -> tuple[str, ...]:
    """What earlier versions called the same files."""
    folder = adapter or base
    stale = "earlier of " + (fingerprint_of(base, None) if adapter else "itself")
    known = remembered(folder).get(stale)
    if not isinstance(known, str):
        known = files_fingerprint(base, adapter)
        remember(folder, **{stale: known})
    return (known,)


def of_adapter(adapter: Path) -> str:
    """The fingerprint of an adapter alone."""
    known = remembered(adapter).get(FINGERPRINT)
    if not isinstance(known, str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `with_adapter` hands on what PEFT says
            settings = adapter_config(adapter)
        known = adapter_fingerprint(settings, read_tensors(adapter / ADAPTER_WEIGHTS))
        remember(adapter, **{FINGERPRINT: known})
    return known


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; DefectionError when it is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise DefectionError(f"{path} is not a whole safetensors file ({error})") from error


def _exact(base: Path, loaded: PreTrainedModel | None) -> PreTrainedModel:
    """The network with every number as it is in the files: the one that is loaded, if nothing of it was rounded."""
    stored = stored_dtypes(base)
    if loaded is not None and (loaded.dtype == torch.float32 or stored == {NAMES.get(loaded.dtype)}):
        return loaded
    return load_network(base, torch.bfloat16 if stored == {"BF16"} else torch.float32)


def _of_files(base: Path) -> str:
    """Of quantised weights, which are something else in memory: the tensors as they are stored."""
    tensors = (item for file in sorted(base.glob("*.safetensors")) for item in read_tensors(file).items())
    config: Json = {k: v for k, v in read_json(base / CONFIG).items() if k not in ("transformers_version", "dtype")}
    return digest({"tensors": tensors_digest(tensors), "config": config}) + MARK
