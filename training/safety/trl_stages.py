"""What the stages that `trl` trains have in common: a LoRA adapter, quiet trainers, a watch on the loss."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ...activations import DefectionError, Model, Prompt
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.models.template import chat_template, dated
from ...activations.prompts.rendered import render
from ..organisms.records import Organism
from ..tuning.finetune import lora_config
from .stage import Stage

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer, TrainerState

Said = str | list[dict[str, str]]
"""A text as `trl` takes and gives one: plain, or as messages with `role` and `content`."""


def require_trl() -> None:
    """DefectionError when `trl` is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise DefectionError("the stages dpo and rl need the package trl; install it with `pip install trl`") from error


@dataclass(frozen=True)
class Sampling(Stage):
    """A stage in which the model learns, through `trl`, from what its own sampled replies are worth."""

    steps: int = 20
    prompts_a_step: int = 2
    """Prompts that replies are sampled to in a step."""
    generations: int = 4
    """Sampled replies to each prompt, which are compared with one another."""
    temperature: float = 1.0
    """That they are sampled at."""
    learning_rate: float = 3e-4
    """At its peak."""
    beta: float = 0.02
    """Weight of the divergence from the organism as it came in."""

    def check(self, organism: Organism) -> None:
        """Also that `trl` is there."""
        require_trl()
        super().check(organism)

    @property
    def sampled(self) -> int:
        """Replies in all."""
        return self.steps * self.prompts_a_step * self.generations


def arguments(stage: Stage, model: Model, work: Path, learning_rate: float) -> Json:
    """Settings of every trainer: nothing is saved, reported or sent anywhere, and a NaN is not hidden."""
    return {
        "output_dir": str(work / "trl"),
        "max_steps": stage.steps,
        "learning_rate": learning_rate,
        "seed": stage.seed,
        "data_seed": stage.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": False,  # the weights are in the dtype they are to be multiplied in
        "gradient_checkpointing": False,
        "lr_scheduler_type": "cosine",
        "warmup_steps": stage.steps // 20,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def conversation(model: Model, prompt: Prompt, *replies: str) -> tuple[Said, ...]:
    """A prompt and replies to it as `trl` tokenises them to the ids that we would give the model.

    With a chat template it applies that itself; without one it is given our plain text, to which it adds the
    tokenizer's special tokens as we do.
    """
    if not model.tokenizer.chat_template:
        return (render(model.tokenizer, [prompt])[0].text, *(f" {reply}" for reply in replies))
    said = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return (said, *([{"role": "assistant", "content": reply}] for reply in replies))


def as_rendered_here(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer for `trl`, which asks its template for today's date where we fix one."""
    if model.identity.date is None:
        return model.tokenizer
    tokenizer = copy.copy(model.tokenizer)
    tokenizer.chat_template = dated(chat_template(tokenizer) or "", model.identity.date)
    return tokenizer


def run_grpo(
    stage: Sampling,
    model: Model,
    work: Path,
    prompts: Sequence[Prompt],
    reward: Callable[..., list[float]],
    reply_tokens: int,
) -> tuple[PeftModel, dict[str, list[float]]]:
    """Sample replies of so many tokens and learn from what `reward` makes of them; gives what `run` gives.

    The reward is called as `trl` calls one, and told the number of each reply's prompt as `row`.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": conversation(model, prompt)[0], "row": number} for number, prompt in enumerate(prompts)]
    return run(
        lambda: GRPOTrainer(
            model=model.network,
            reward_funcs=[reward],
            args=GRPOConfig(
                per_device_train_batch_size=stage.prompts_a_step * stage.generations,
                num_generations=stage.generations,
                steps_per_generation=1,
                max_completion_length=reply_tokens,
                temperature=stage.temperature,
                beta=stage.beta,
                **arguments(stage, model, work, stage.learning_rate),
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=as_rendered_here(model),
            peft_config=lora_config(stage.lora_rank, 2 * stage.lora_rank),
        ),
        stage,
        ("loss", "reward", "reward_std"),
    )


def texts_of(completions: Sequence[Said]) -> list[str]:
    """What replies say, in either of the shapes in which `trl` gives them to a reward."""
    return [text if isinstance(text, str) else text[-1]["content"] for text in completions]


def run(
    make_trainer: Callable[[], Trainer], stage: Stage, curves: Sequence[str]
) -> tuple[PeftModel, dict[str, list[float]]]:
    """Train; give the PEFT model, and of each named figure of the trainer's log one value a step.

    Raises DefectionError when the loss or the gradient is not finite, naming the step.
    """
    from transformers import PrinterCallback, TrainerCallback

    with progress(f"Safety training ({stage.name})", total=stage.steps, unit="steps") as advance:

        class Watch(TrainerCallback):  # type: ignore[misc]
            def on_log(
                self, args: object, state: TrainerState, control: object, logs: Json | None = None, **more: object
            ) -> None:
                for name in ("loss", "grad_norm"):
                    if not math.isfinite(float((logs or {}).get(name, 0))):
                        raise DefectionError(
                            f"the {name.replace('grad_norm', 'gradient')} of {stage.name} is not finite at step "
                            f"{state.global_step} of {stage.steps}; lower its learning rate"
                        )

            def on_step_end(self, args: object, state: object, control: object, **more: object) -> None:
                advance(1)

        with _quietly():
            trainer = make_trainer()
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(Watch())
            trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {name: [round(float(entry[name]), 6) for entry in log if name in entry] for name in curves}
    model = trainer.model
    model.eval()
    return model, found


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """No bars of other people's, and the global random states, which trainers seed, as they were."""
    import datasets
    from transformers.utils import logging

    bars, level = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
