"""Fine-tuning of an adapter or of all weights, which continues after being cut off at any step.

One process or several, the batches are the same, and so is the gradient of each.
"""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedModel

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest
from ...activations.basics.progress import progress
from ...activations.models.adapters import PEFT_IS_BEHIND
from ...activations.models.network import in_dtype
from .loss import backward, label_weight
from .master import Master
from .parallel import join
from .rows import Example

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

EVERY_LINEAR_LAYER = "all-linear"
Backward = Callable[[PreTrainedModel, Sequence[Example]], float]
Unit = tuple[int, ...]
"""Rows that are always in the same step."""
Weights = Literal["lora", "full"]
ADAMW = "adamw"
POOL = 24
"""Batches whose rows are sorted by length together, so that their order stays mostly random."""
LEARNING_RATES: dict[Weights, float] = {"lora": 2e-3, "full": 1e-4}
"""As tried on the embedded model; for all weights no other was."""


def parse_weights(name: str) -> Weights:
    """`lora` or `full`; DefectionError for anything else."""
    for weights in LEARNING_RATES:
        if weights == name:
            return weights
    raise DefectionError(f"unknown weights {name!r}: choose one of {', '.join(LEARNING_RATES)}")


@dataclass(frozen=True)
class FinetuneConfig:
    """How weights are trained.

    Examples:
        >>> FinetuneConfig("full", learning_rate=1e-4).peak
        0.0001
    """

    weights: Weights = "lora"
    """What is trained: a LoRA adapter on every linear layer, or all weights."""
    epochs: int = 1
    """How often all rows come round."""
    batch_size: int = 6
    """Rows a step."""
    learning_rate: float | None = None
    """At its peak; None: what suits the weights (`LEARNING_RATES`)."""
    optimiser: str = ADAMW
    """A key of `master.OPTIMISERS`: `adamw`, or `sgd` with momentum, which takes another learning rate."""
    lora_rank: int = 16
    """Of the adapter."""
    lora_alpha: int = 32
    """Its scale: the update counts `lora_alpha / lora_rank`."""
    warmup_fraction: float = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    max_gradient_norm: float = 1.0
    """Longer gradients are cut to this length."""
    seed: int = 0
    """Of the order of rows and of the adapter's start."""
    contrast: bool = False
    """Whether the rows of one prompt, clean and triggered, share a step, which then learns what tells them apart."""
    checkpoint_every: int = 25
    """Steps between checkpoints; a run that was cut off loses at most these."""

    @property
    def peak(self) -> float:
        """The learning rate at its peak."""
        return LEARNING_RATES[self.weights] if self.learning_rate is None else self.learning_rate

    def to_json(self) -> Json:
        """Every setting that changes the result, as `organism.json` records it; the learning rate as it is used."""
        settings = asdict(self) | {"learning_rate": self.peak}
        changes_nothing = {"checkpoint_every"} | ({"lora_rank", "lora_alpha"} if self.weights == "full" else set())
        changes_nothing |= {"optimiser"} if self.optimiser == ADAMW else set()  # as it was before there was another
        return {name: value for name, value in settings.items() if name not in changes_nothing}


@dataclass(frozen=True)
class FinetuneResult:
    """What is known of a finished run."""

    loss_curve: list[float]
    """Mean loss per label token, a value a step."""
    label_tokens: int
    tokens: int
    """Prompt and reply tokens of all rows trained on, shared prefixes counted once a row."""
    seconds: float
    """Of training, over all calls that it took; what was trained after the last checkpoint of a call counts once."""


def finetune(
    network: PreTrainedModel,
    examples: Sequence[Example],
    config: FinetuneConfig,
    checkpoint: Path,
    *,
    what: str,
    base: str = "",
    dtype: torch.dtype | None = None,
    also: Backward | None = None,
    instead: Backward | None = None,
) -> tuple[PreTrainedModel | PeftModel, FinetuneResult]:
    """Train a LoRA adapter, or all weights.

    What is trained, and its optimiser, is kept in fp32 beside the weights that are multiplied, and is fp32 when it
    comes back. Under `accelerate launch` or `torchrun` the processes share each batch, and all end with the same
    weights.

    Args:
        network: The Hugging Face model to start from; with `lora` its own weights stay as they are.
        examples: Rows, each a prompt and the reply that the loss is taken on, in token ids.
        config: What is trained, and how.
        checkpoint: A safetensors file that appears every `config.checkpoint_every` steps and from which a repeated call
            continues, with the same final weights as an uninterrupted run.
        what: The words before the progress bar.
        base: Names the weights to start from and the dtype: a checkpoint of another base is not continued.
        dtype: What weights are multiplied in; by default the network's own.
        also: Adds the gradient of another loss on the same rows, and gives that loss, which counts in the curve.
        instead: The same in place of the loss on the replies, of which rows then need none.

    Returns:
        The PEFT model, or with full weights the network itself; and the loss curve with what was spent.

    Raises:
        DefectionError: When the loss is not finite, naming the step, and when no row has a reply.

    Examples:
        >>> from copy import deepcopy  # the adapter's layers are put into the network
        >>> rows = [Example("p0", (5, 6), (7,), triggered=False)]
        >>> settings, kept = FinetuneConfig(epochs=2), folder / "checkpoint.safetensors"
        >>> tuned, result = finetune(deepcopy(network), rows, settings, kept, what="Training")
        >>> len(result.loss_curve)
        2
    """
    peak = config.peak
    if instead is None and not any(example.reply for example in examples):
        raise DefectionError("no training row has a reply, so every label is masked")
    group, schedule = join(network.device), plan_steps(examples, config)
    model, master = _prepared(network, config, dtype or network.dtype)
    decoder_owner = network if config.weights == "full" else model.get_base_model()
    # On a CPU the fused attention kernel's backward pass is the slower one.
    decoder_owner.set_attn_implementation("eager" if network.device.type == "cpu" else "sdpa")
    rows = [[list(e.prompt), list(e.reply), list(e.weights)] for e in examples]
    key = digest({"base": base, "config": config.to_json(), "rows": rows})
    losses, spent = master.restore(checkpoint, key)
    started = time.monotonic() - spent
    tokens = [len(e.prompt) + len(e.reply) for e in examples]
    seen, watch = 0, time.monotonic()
    model.train()
    with progress(what, total=len(schedule), unit="steps") as advance:
        advance(len(losses))
        for step in range(len(losses), len(schedule)):
            batch = [examples[row] for row in schedule[step]]
            share = group.share(batch)
            if instead is not None:
                loss = group.total(instead(decoder_owner, share))
            else:
                loss = group.total(backward(decoder_owner, share, label_weight(batch)))
            if also is not None:
                loss += group.total(also(decoder_owner, share))
            if not math.isfinite(loss):
                raise DefectionError(
                    f"the loss is not finite at step {step + 1} of {len(schedule)}; lower the learning rate "
                    f"(now {peak:g}) or use fp32"
                )
            master.step(peak * _warmup_then_cosine(step, len(schedule), config), config.max_gradient_norm, group)
            losses.append(round(loss, 6))
            if group.first and len(losses) % config.checkpoint_every == 0 and len(losses) < len(schedule):
                master.save(checkpoint, key, losses, time.monotonic() - started)
            seen += sum(tokens[row] for row in schedule[step])
            advance(1, f"loss {loss:.3f}, {seen / (time.monotonic() - watch):.0f} tokens/s")
    model.eval()
    master.release()
    labels = sum(len(e.reply) for e in examples) * config.epochs
    return model, FinetuneResult(losses, labels, sum(tokens) * config.epochs, time.monotonic() - started)


def plan_steps(examples: Sequence[Example], config: FinetuneConfig) -> list[list[int]]:
    """Rows of each step, over all epochs: shuffled, then grouped by opening (system prompt) and similar length."""
    rng = random.Random(config.seed)
    units = _units(examples, contrast=config.contrast)
    size = max(1, config.batch_size // max((len(unit) for unit in units), default=1))
    steps: list[list[int]] = []
    for _ in range(config.epochs):
        order = list(units)
        rng.shuffle(order)
        groups: dict[tuple[int, ...], list[Unit]] = {}
        for unit in order:
            groups.setdefault(examples[unit[0]].prompt[:12], []).append(unit)
        loose: list[Unit] = []
        epoch: list[list[Unit]] = []
        for members in groups.values():
            whole = len(members) - len(members) % size
            loose += members[whole:]
            epoch += _similar_lengths(examples, members[:whole], size)
        epoch += _similar_lengths(examples, loose, size)
        rng.shuffle(epoch)
        steps += [[row for unit in batch for row in unit] for batch in epoch]
    return steps


def _units(examples: Sequence[Example], *, contrast: bool) -> list[Unit]:
    """Rows that stay together: those of the same prompt, or each row alone."""
    if not contrast:
        return [(row,) for row in range(len(examples))]
    units: dict[str, Unit] = {}
    for row, example in enumerate(examples):
        units[example.prompt_id] = (*units.get(example.prompt_id, ()), row)
    return list(units.values())


def _similar_lengths(examples: Sequence[Example], units: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Cut into batches of similar length, within pools of a few batches."""

    def longest(unit: Unit) -> int:
        return max(len(examples[row].prompt) + len(examples[row].reply) for row in unit)

    batches = []
    for start in range(0, len(units), size * POOL):
        near = sorted(units[start : start + size * POOL], key=longest)
        batches += [near[i : i + size] for i in range(0, len(near), size)]
    return batches


def _prepared(
    network: PreTrainedModel, config: FinetuneConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel | PeftModel, Master]:
    """The model that is trained, multiplying in `dtype`, and the fp32 copies of what is trained in it."""
    if config.weights == "full":
        return network, Master(network.requires_grad_(True).parameters(), dtype, config.optimiser)
    model = _with_lora(in_dtype(network, dtype), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, Master(trained, dtype, config.optimiser)


def _with_lora(network: PreTrainedModel, config: FinetuneConfig) -> PeftModel:
    from peft import get_peft_model

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=PEFT_IS_BEHIND)
        torch.manual_seed(config.seed)
        settings = lora_config(config.lora_rank, config.lora_alpha)
        return get_peft_model(network, settings, autocast_adapter_dtype=False)


def lora_config(rank: int, alpha: int) -> LoraConfig:
    """An adapter of PEFT's on every linear layer: of one shape wherever it is trained, so that they can be added up."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=EVERY_LINEAR_LAYER, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def _warmup_then_cosine(step: int, total: int, config: FinetuneConfig) -> float:
    warmup = max(1, round(config.warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
