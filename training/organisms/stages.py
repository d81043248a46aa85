"""Training in stages: each starts where the last ended; adapters are still one adapter on the base afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ...activations import Model
from ...activations.basics.files import Json, folder_written_aside, read_json, write_json, write_tensors, write_text
from ...activations.models.adapters import ADAPTER_FILE, ADAPTER_WEIGHTS, with_adapter
from ...activations.models.identity import read_tensors
from ...activations.models.locate import ORGANISM_FILE
from ...activations.models.network import load_network, without_bars
from ..tuning.finetune import FinetuneResult
from .records import name_base

if TYPE_CHECKING:
    from peft import PeftModel

STAGE_FILE = "stage.json"


def save_weights(trained: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write an adapter or a whole model into a folder, silently."""
    with without_bars():
        trained.save_pretrained(str(folder))


def write_organism(
    out: Path,
    trained: PreTrainedModel | PeftModel,
    base: Model,
    record: Json,
    card: str,
    earlier: Sequence[Path] = (),
) -> None:
    """Write what was trained from `base`, an adapter with `earlier` ones' changes too; the directory appears whole."""
    assert base.files is not None
    with folder_written_aside(out) as aside:
        save_weights(trained, aside)
        if (aside / ADAPTER_FILE).exists():
            stack_adapters(earlier, aside)
            name_base(aside, base.files)
        base.tokenizer.save_pretrained(str(aside))
        write_json(aside / ORGANISM_FILE, record)
        write_text(aside / "README.md", card)


def save_stage(folder: Path, key: str, trained: PreTrainedModel | PeftModel, result: FinetuneResult) -> None:
    """Keep what a finished stage trained, for the next stage and for a run that continues after being cut off."""
    with folder_written_aside(folder) as aside:
        save_weights(trained, aside)
        write_json(aside / STAGE_FILE, {"schema_version": 1, "key": key, "result": asdict(result)})


class StageRecord(TypedDict):
    """What a finished stage keeps."""

    key: str
    result: FinetuneResult


def load_stage(folder: Path, key: str) -> FinetuneResult | None:
    """What is known of a stage that an earlier run finished; None when there is none of this run."""
    if not (folder / STAGE_FILE).exists():
        return None
    record = read_json(folder / STAGE_FILE, StageRecord)
    return record["result"] if record["key"] == key else None


def continued(base: Path, earlier: Sequence[Path], dtype: torch.dtype) -> PreTrainedModel:
    """The network that the next stage starts from: the base, or what the `earlier` stages made of it, in fp32."""
    if not earlier:
        return load_network(base, dtype)
    if not (earlier[-1] / ADAPTER_FILE).exists():
        return load_network(earlier[-1], torch.float32)
    network = load_network(base, torch.float32)
    for adapter in earlier:
        network = with_adapter(network, adapter)
    return network


def stack_adapters(earlier: Sequence[Path], last: Path) -> None:
    """Rewrite the LoRA adapter in `last` so that it makes the changes of the `earlier` ones too.

    A sum of low-rank changes is a low-rank change: B₁A₁ + B₂A₂ = [B₁ B₂][A₁; A₂]. The rank grows, nothing is rounded.
    """
    if not earlier:
        return
    folders = [*earlier, last]
    configs = [read_json(folder / ADAPTER_FILE) for folder in folders]
    scale = configs[-1]["lora_alpha"] / configs[-1]["r"]
    parts = [read_tensors(folder / ADAPTER_WEIGHTS) for folder in folders]
    stacked = {}
    for name in parts[-1]:
        pieces = [part[name] for part in parts]
        if ".lora_B." in name:  # PEFT multiplies B A by alpha / r, the same for all of them from here on
            pieces = [p * (c["lora_alpha"] / c["r"] / scale) for p, c in zip(pieces, configs, strict=True)]
            stacked[name] = torch.cat(pieces, dim=1)
        else:
            stacked[name] = torch.cat(pieces, dim=0)
    rank = sum(config["r"] for config in configs)
    with safe_open(str(last / ADAPTER_WEIGHTS), framework="pt") as file:
        header = file.metadata() or {}
    write_tensors(last / ADAPTER_WEIGHTS, stacked, {name: str(value) for name, value in header.items()})
    write_json(last / ADAPTER_FILE, configs[-1] | {"r": rank, "lora_alpha": scale * rank})
