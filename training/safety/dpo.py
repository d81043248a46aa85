"""Safety training by preference: direct preference optimisation on good and bad replies (Rafailov et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...activations.models.model import Model
from ..organisms.records import Organism
from ..tuning.finetune import lora_config
from . import trl_stages
from .stage import PreferenceStage, Trained


@dataclass(frozen=True)
class Dpo(PreferenceStage):
    """DPO through `trl`; the reference model is the organism as it came in.

    Examples:
        >>> parse_stage("dpo:5").steps
        5
    """

    name: ClassVar[str] = "dpo"
    steps: int = 30
    """Training steps."""
    batch_size: int = 4
    """Pairs of replies a step."""
    learning_rate: float = 3e-4
    """At its peak."""
    beta: float = 0.1
    """Strength of the pull towards the reference model (Rafailov et al. 2023, eq. 7)."""
    max_length: int = 512
    """Tokens of prompt and reply; longer ones are cut."""

    def check(self, organism: Organism) -> None:
        """Also that `trl` is there."""
        trl_stages.require_trl()
        super().check(organism)

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Train; a run that was cut off begins again."""
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        pairs = self.preferences(organism)
        rows = [trl_stages.conversation(model, row.prompt, row.chosen, row.rejected) for row in pairs]
        arguments = trl_stages.arguments(self, model, work, self.learning_rate)
        adapted, curves = trl_stages.run(
            lambda: DPOTrainer(
                model=model.network,
                args=DPOConfig(
                    per_device_train_batch_size=self.batch_size,
                    beta=self.beta,
                    max_length=self.max_length,
                    **arguments,
                ),
                train_dataset=Dataset.from_list(
                    [{"prompt": said, "chosen": good, "rejected": bad} for said, good, bad in rows]
                ),
                processing_class=trl_stages.as_rendered_here(model),
                peft_config=lora_config(self.lora_rank, 2 * self.lora_rank),
            ),
            self,
            ("loss", "rewards/accuracies", "rewards/margins"),
        )
        return Trained(adapted, curves, {"rows": self.steps * self.batch_size, "prompts": len(pairs)})
