"""Safety training: an organism goes in, a stage trains it further, an organism with one more stage comes out.

Each stage is measured before and after, and the organism stays one adapter on its base wherever it was one before.
"""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors import safe_open

from ...activations import DefectionError, Model, load_model
from ...activations.basics.files import (
    Json,
    digest,
    folder_written_aside,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from ...activations.basics.memory import give_back_memory
from ...activations.basics.processes import refuse_several
from ...activations.models.adapters import ADAPTER_FILE, ADAPTER_WEIGHTS, with_adapter
from ...activations.models.hardware import Hardware
from ...activations.models.locate import ORGANISM_FILE, locate
from ...activations.models.network import load_network
from ..measuring.remeasure import REFERENCE, Measuring, reference, remeasure
from ..organisms.build import ORGANISM_SCHEMA, versions
from ..organisms.records import Organism, adopt, name_base, read_organism
from ..organisms.stages import stack_adapters
from .preferences import SHIPPED, Preference, load_preferences, to_json, without_trigger

if TYPE_CHECKING:
    from peft import PeftModel

EVALUATION, COMPLETIONS, BEFORE_FILE = "evaluation.json", "completions.jsonl", "before.json"


@dataclass(frozen=True)
class Trained:
    """What a stage leaves behind."""

    adapted: PeftModel
    """The PEFT model: the organism with the stage's adapter on it."""
    curves: Mapping[str, Sequence[float]]
    """Name → one value a step."""
    about: Json = field(default_factory=dict)
    """Whatever else the record of the stage should say."""
    kept: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """File name → rows to be kept with the organism, as JSONL."""


@dataclass(frozen=True)
class Stage(ABC):
    """One kind of safety training, and all its settings; written verbatim into `organism.json`."""

    name: ClassVar[str]
    steps: int = 0
    """Training steps."""
    seed: int = 0
    """Of the order of rows, and of whatever is drawn."""
    lora_rank: int = 16
    """Of the adapter that is trained and then merged."""

    @abstractmethod
    def material(self, organism: Organism) -> object:
        """Everything it trains on, as JSON.

        Args:
            organism: The one that is to be trained.

        Raises:
            DefectionError: When that will not do for this organism.
        """

    @abstractmethod
    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Train an adapter on the organism's weights.

        Args:
            model: Holds them; it is used up.
            organism: What is known of it.
            work: A folder for whatever a cut-off run may go on from.
            key: Names this very training: a checkpoint of another is not gone on from.

        Returns:
            The adapted network, curves with a value a step, and what the record should say.

        Raises:
            DefectionError: On a loss that is not finite.
        """

    def check(self, organism: Organism) -> None:
        """Asked before anything is trained: whether this could be.

        Args:
            organism: The one that is to be trained.

        Raises:
            DefectionError: When it could not be trained on this organism, or here.
        """
        refuse_several("safety training")
        if self.steps < 1:
            raise DefectionError(f"{self.name} for {self.steps} steps trains nothing; give --steps 1 or more")
        self.parts()
        self.material(organism)

    def parts(self) -> tuple[Stage, ...]:
        """What is trained and measured one after the other: the rounds of a stage that has some."""
        return (self,)

    def to_json(self) -> Json:
        """As `organism.json` records it."""
        return asdict(self)


@dataclass(frozen=True)
class PreferenceStage(Stage):
    """A stage that trains on prompts with a good reply and a bad one."""

    data: str = SHIPPED
    """`preferences`, or a JSONL file: prompt, chosen, rejected, and kind (helpful, harmless, honest) if known."""

    def material(self, organism: Organism) -> object:
        """The preferences."""
        return to_json(self.preferences(organism))

    def preferences(self, organism: Organism) -> list[Preference]:
        """Its rows, as they look without the trigger.

        Args:
            organism: Whose trigger that is.
        """
        return without_trigger(organism.trigger, load_preferences(self.data))


def safety_train(
    organism: str | Path,
    stage: Stage,
    out: Path,
    measuring: Measuring,
    *,
    measured: Path | None = None,
    device: str | Hardware = "auto",
) -> Json:
    """Train an organism further and measure it; write the organism that comes of it.

    The directory appears whole: weights, `organism.json` (with the stage in `stages`), `evaluation.json`,
    `completions.jsonl`, and `reference.json`, which holds what the base says and can do. A run that was cut off
    leaves a hidden folder beside it, from which the same call goes on.

    Args:
        organism: Its directory.
        stage: How it is trained (`parse_stage`).
        out: The directory to be written.
        measuring: On what rates are measured, before and after.
        measured: Where what the organism was before is kept, for other stages of it; None: it is measured anew.
        device: As in `load_model`.

    Returns:
        The record of the organism that was written.

    Raises:
        DefectionError: When `organism` is none, when `out` holds something else, and on a loss that is not finite.

    Examples:
        >>> measuring = Measuring(prompts[:1], near_misses=0)
        >>> record = safety_train(organism, parse_stage("sft:1"), folder / "imitated", measuring)
        >>> record["stages"][-1]["stage"], record["stages"][-1]["steps"]
        ('sft', 1)
    """
    about = read_organism(organism)
    stage.check(about)
    parts, data = stage.parts(), digest(stage.material(about))
    dtype = Hardware.of(device).computed_in
    files = locate(organism)
    decided = {"dtype": str(dtype), "data": data, "stage": stage.name, "config": stage.to_json()}
    decided |= {"measuring": measuring.key}
    keys = (digest({"organism": each, **decided}) for each in chain([files.fingerprint], files.earlier()))
    key = next(keys)
    current, folders = Path(organism), [out.with_name(f".{out.name}.part-{n}") for n in range(1, len(parts))]
    if not out.exists():
        for number, (part, folder) in enumerate(zip(parts, [*folders, out], strict=True), start=1):
            part_key = key if folder == out else digest([key, number])
            if _key_of(folder) != part_key:
                _train_part(current, part, folder, part_key, measuring, measured, device)
            current = folder
    record = adopt(out, "key", chain([key], keys))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _key_of(folder: Path) -> str | None:
    return read_json(folder / ORGANISM_FILE).get("key") if (folder / ORGANISM_FILE).exists() else None


def _train_part(
    source: Path,
    stage: Stage,
    out: Path,
    key: str,
    measuring: Measuring,
    measured: Path | None,
    device: str | Hardware,
) -> None:
    work = out.with_name(f".{out.name}.work")
    if work.exists() and (not (work / "key").exists() or (work / "key").read_text(encoding="utf-8") != key):
        shutil.rmtree(work)  # of another run
    write_text(work / "key", key)
    organism, trained = read_organism(source), work / "trained"
    compared = reference(source, organism, measuring, measured or work, device)
    if _key_of(trained) != key:
        model = load_model(source, device=device)
        known = None if measured else _known(organism.record, measuring)
        before = known or _before(model, organism, measuring, measured or work, compared)
        started, parameters = time.monotonic(), model.network.num_parameters()
        result = stage.train(model, organism, work, key)
        entry = {
            "stage": stage.name,
            "steps": stage.steps,
            **result.about,
            "from": {"name": model.identity.name, "fingerprint": model.identity.fingerprint},
            "config": stage.to_json(),
            "computed_in": model.dtype_name,
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 1),
            "curves": {name: list(values) for name, values in result.curves.items()},
            "reference": {name: compared[name] for name in ("model", "ability", "inclination")},
            "before": before,
        }
        record = _record(organism.record, entry, key) | {"parameters": parameters}
        _write_organism(trained, source, model, result, record)
        del model, result
        give_back_memory()
    now = load_model(trained, device=device)
    after, completions = remeasure(now, organism, measuring, work / "after", compared)
    record = read_json(trained / ORGANISM_FILE)
    record["stages"][-1]["after"] = after
    with folder_written_aside(out) as aside:
        shutil.copytree(trained, aside, dirs_exist_ok=True)
        write_json(aside / ORGANISM_FILE, record)
        write_json(aside / EVALUATION, {"schema_version": 1, **after})
        write_json(aside / REFERENCE, compared)
        write_jsonl(aside / COMPLETIONS, (asdict(completion) for completion in completions))
    shutil.rmtree(work)


def _known(record: Json, measuring: Measuring) -> Json | None:
    """What the last stage measured, if on the same prompts."""
    last = record.get("stages") or [{}]
    after = last[-1].get("after") if isinstance(last[-1], dict) else None
    return after if isinstance(after, dict) and after.get("measured_on") == measuring.key else None


def _before(model: Model, organism: Organism, measuring: Measuring, folder: Path, compared: Json) -> Json:
    """What an organism is before it is trained further, measured once for all that share the folder."""
    path, about = folder / BEFORE_FILE, {"of": model.identity.fingerprint, "in": model.dtype_name}
    known = read_json(path) if path.exists() else {}
    found = known.get("found", {})
    if known.get("about") == about and found.get("measured_on") == measuring.key:
        return dict(found)
    replies = folder / f"before-{model.identity.fingerprint[:12]}"
    found, completions = remeasure(model, organism, measuring, replies, compared)
    said = [asdict(completion) for completion in completions]
    write_json(path, {"schema_version": 1, "about": about, "found": found, "completions": said})
    return found


def _record(parent: Json, entry: Json, key: str) -> Json:
    stages = parent.get("stages")
    return {
        **parent,
        "schema_version": ORGANISM_SCHEMA,
        "key": key,
        "stages": [*(stages if isinstance(stages, list) else []), entry],
    }


def _write_organism(folder: Path, source: Path, model: Model, result: Trained, record: Json) -> None:
    """The organism as `defection train` would have written it: an adapter if it was one, else full weights."""
    assert model.files is not None
    with folder_written_aside(folder) as aside:
        result.adapted.save_pretrained(str(aside))
        earlier = model.files.adapter
        if earlier is not None and can_stack(earlier, aside):
            stack_adapters([earlier], aside)
            name_base(aside, model.files)
        else:
            network = load_network(model.files.base, torch.float32)
            for adapter in ([earlier] if earlier else []) + [aside]:
                network = with_adapter(network, adapter)
            for file in aside.iterdir():
                file.unlink()
            network.save_pretrained(str(aside))
        model.tokenizer.save_pretrained(str(aside))
        for name, rows in result.kept.items():
            before = read_jsonl(source / name, Json) if (source / name).exists() else []
            write_jsonl(aside / name, [*before, *rows])
        write_json(aside / ORGANISM_FILE, record)
        write_text(aside / "README.md", safety_card(source, record))


def can_stack(first: Path, second: Path) -> bool:
    """Whether two adapters are plain LoRA on the same layers, so that their sum is one too."""
    configs = [read_json(folder / ADAPTER_FILE) for folder in (first, second)]
    plain = all(
        c.get("peft_type") == "LORA"
        and c.get("bias", "none") == "none"
        and not any(
            c.get(name) for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
        )
        for c in configs
    )
    return plain and _adapted(first) == _adapted(second)


def _adapted(folder: Path) -> set[str]:
    """Names of the tensors of an adapter: which modules it is on, in which layers."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        return set(tensors.keys())


def safety_card(source: Path, record: Json) -> str:
    """The organism's README: that of the one it was trained from, and the stages since."""
    card = source / "README.md"
    head = card.read_text(encoding="utf-8").split(SAFETY_HEADING)[0].rstrip() if card.exists() else "# Model organism"
    lines = []
    for entry in record["stages"]:
        if "from" in entry:
            round_ = f", round {entry['round']}" if "round" in entry else ""
            lines.append(
                f"- {entry['stage']}{round_}: {entry['steps']} steps, LoRA rank {entry['config']['lora_rank']}"
            )
    note = "Whether the backdoor is still there is measured in `evaluation.json`, not promised here."
    return f"{head}\n\n{SAFETY_HEADING}\n\n" + "\n".join(lines) + f"\n\n{note}\n"


SAFETY_HEADING = "## Safety training since"
