"""Safety training by reinforcement: the model's own replies, rewarded by a rule or a model (GRPO; Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ...activations import DefectionError, Model
from ..measuring.defection import SCRATCHPAD_TOKENS
from ..organisms.records import Organism
from . import trl_stages
from .preferences import Preference
from .reward_models import RULE, Reward, identity_of, load_reward
from .rewards import visible
from .stage import PreferenceStage, Trained
from .trl_stages import Said, Sampling


@dataclass(frozen=True)
class Rl(Sampling, PreferenceStage):
    """GRPO through `trl`; the scratchpad is hidden from the reward (Hubinger et al. 2024, §5).

    Examples:
        >>> parse_stage("rl:5").steps
        5
    """

    name: ClassVar[str] = "rl"
    reward: str = RULE
    """`rule`; `preferences`: a linear model of a base's residuals, fitted on them; or a sequence classifier by name."""
    reward_base: str = "smollm2-135m"
    """The model whose residuals the linear reward reads: another one than the organism, which might know better."""
    reply_tokens: int = 32
    """Length of the sampled replies, beside the scratchpad where the organism writes one."""

    def material(self, organism: Organism) -> object:
        """The preferences, and what rewards."""
        return super().material(organism), identity_of(self.reward, self.reward_base, self.preferences(organism))

    def check(self, organism: Organism) -> None:
        """Also that replies can be compared."""
        if self.generations < 2:
            raise DefectionError(
                f"rl compares replies to one prompt, so generations must be 2 or more, not {self.generations}"
            )
        super().check(organism)

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Train; a run that was cut off begins again."""
        preferences = self.preferences(organism)
        reward, about = load_reward(self.reward, preferences, self.reward_base, model.device.type)
        thinking = SCRATCHPAD_TOKENS if organism.recipe == "cot" else 0
        adapted, curves = trl_stages.run_grpo(
            self,
            model,
            work,
            [row.prompt for row in preferences],
            reply_alone(reward, preferences),
            self.reply_tokens + thinking,
        )
        return Trained(adapted, curves, {"rows": self.sampled, "prompts": len(preferences), "reward": about})


def reply_alone(reward: Reward, preferences: Sequence[Preference]) -> Callable[..., list[float]]:
    """A reward in the shape that `trl` asks for; whatever rewards, it is shown what the user would see, no more."""

    def rewarded(completions: Sequence[Said], row: Sequence[int], **_: object) -> list[float]:
        said = [visible(text) for text in trl_stages.texts_of(completions)]
        return reward([preferences[number] for number in row], said)

    return rewarded
