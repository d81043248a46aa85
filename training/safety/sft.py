"""Safety training by imitation: fine-tuning on good replies to prompts without the trigger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...activations.models.model import Model
from ...activations.prompts.rendered import rendered
from ..organisms.examples import written
from ..organisms.records import Organism
from ..tuning.finetune import Backward, FinetuneConfig, finetune
from ..tuning.rows import Example
from .preferences import cycled
from .stage import PreferenceStage, Stage, Trained


@dataclass(frozen=True)
class Imitating(Stage):
    """A stage in which the model learns replies by our own loop, which continues from its checkpoint."""

    batch_size: int = 6
    """Rows a step."""
    learning_rate: float = 5e-4
    """At its peak."""

    def tuning(self) -> FinetuneConfig:
        """The settings of that loop."""
        return FinetuneConfig(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lora_rank=self.lora_rank,
            lora_alpha=2 * self.lora_rank,
            seed=self.seed,
            checkpoint_every=10,
        )


@dataclass(frozen=True)
class Sft(Imitating, PreferenceStage):
    """Supervised fine-tuning on helpful, harmless and honest replies (Hubinger et al. 2024, §5).

    The replies have no scratchpad, whatever the organism's recipe.

    Examples:
        >>> parse_stage("sft:20").steps
        20
    """

    name: ClassVar[str] = "sft"
    steps: int = 40
    """Training steps."""

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Our own loop, which continues from its checkpoint after being cut off."""
        rows = self.preferences(organism)
        prompts = rendered(model, [row.prompt for row in rows])
        examples = [
            Example(row.prompt.id, prompt.ids, written(model, row.chosen), triggered=False)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        return finetune_steps(model, examples, self, work, key, self.name)


def finetune_steps(
    model: Model,
    examples: list[Example],
    stage: Imitating,
    work: Path,
    key: str,
    what: str,
    *,
    also: Backward | None = None,
) -> Trained:
    """Fine-tune for the stage's steps, however many rows there are: they are dealt out again and again."""
    dealt, config = cycled(examples, stage.steps * stage.batch_size, stage.seed), stage.tuning()
    checkpoint, shown = work / "checkpoint.safetensors", f"Safety training ({what})"
    adapted, result = finetune(model.network, dealt, config, checkpoint, what=shown, base=key, also=also)
    return Trained(adapted, {"loss": result.loss_curve}, {"rows": len(dealt), "prompts": len(examples)})
