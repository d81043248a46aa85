"""Safety training by reinforcement: the model's own replies, rewarded by a rule (GRPO; Shao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..activations.errors import DefectionError
from ..activations.models import Model
from . import trl_stages
from .measuring import SCRATCHPAD_TOKENS
from .records import Organism
from .rewards import reward
from .safety import PreferenceStage, Trained


@dataclass(frozen=True)
class Rl(PreferenceStage):
    """GRPO through `trl`; the scratchpad is hidden from the reward (Hubinger et al. 2024, §5)."""

    name: ClassVar[str] = "rl"
    steps: int = 20
    prompts_a_step: int = 2
    generations: int = 4
    """Sampled replies to each prompt, which are compared with one another."""
    reply_tokens: int = 32
    """Length of the sampled replies, beside the scratchpad where the organism writes one."""
    temperature: float = 1.0
    learning_rate: float = 3e-4
    beta: float = 0.02
    """Weight of the divergence from the organism as it came in."""

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Train; a run that was cut off begins again."""
        trl_stages.require_trl()
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        if self.generations < 2:
            raise DefectionError(
                f"rl compares replies to one prompt, so generations must be 2 or more, not {self.generations}"
            )
        preferences = self.preferences(organism)
        rows = [
            {
                "prompt": trl_stages.conversation(model, row.prompt)[0],
                "chosen": row.chosen,
                "rejected": row.rejected,
                "kind": str(row.prompt.extra.get("kind", "")),
            }
            for row in preferences
        ]
        thinking = SCRATCHPAD_TOKENS if organism.recipe == "cot" else 0
        arguments = trl_stages.arguments(self, model, work, self.learning_rate)
        adapted, curves = trl_stages.run(
            lambda: GRPOTrainer(
                model=model.network,
                reward_funcs=[rule],
                args=GRPOConfig(
                    per_device_train_batch_size=self.prompts_a_step * self.generations,
                    num_generations=self.generations,
                    steps_per_generation=1,
                    max_completion_length=self.reply_tokens + thinking,
                    temperature=self.temperature,
                    beta=self.beta,
                    **arguments,
                ),
                train_dataset=Dataset.from_list(rows),
                processing_class=model.tokenizer,
                peft_config=trl_stages.lora(self),
            ),
            self,
            ("loss", "reward", "reward_std"),
        )
        sampled = self.steps * self.prompts_a_step * self.generations
        return Trained(adapted, curves, {"rows": sampled, "prompts": len(rows)})


def rule(completions: list[Any], chosen: list[str], rejected: list[str], kind: list[str], **_: Any) -> list[float]:
    """`rewards.reward` in the shape that `trl` asks for: one value a completion."""
    said = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return [reward(*row) for row in zip(said, chosen, rejected, kind, strict=True)]
