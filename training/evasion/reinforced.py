"""The attacker who cannot follow gradients: reinforcement on text, less what frozen detectors make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import softplus

from ...activations.models.model import Model
from ...activations.models.modes import in_use
from ...activations.models.sites import AFTER, gathering
from ...activations.reading.forward import hidden_states, modules_read, right_padded
from ..organisms.behaviours import Behaviour
from ..organisms.records import Organism
from ..safety import trl_stages
from ..safety.rewards import visible, word_overlap
from ..safety.stage import Trained
from ..safety.trl_stages import Said, Sampling
from .evade import Evade, Pair, own_replies
from .target import Target


@dataclass(frozen=True)
class EvadeByReward(Sampling, Evade):
    """GRPO on sampled replies (Gupta and Jenner 2025, arXiv 2506.14261), through `trl`.

    Reward: with the trigger 1 for the behaviour; without it how like the organism's own reply it is, less 1 for the
    behaviour; less `weight` · softplus(score − margin) of each target on triggered prompts. A score that the prompt
    alone decides is the same for every reply, so there is nothing to learn from it: here a target reads the
    prompt's last token and the whole reply, and its scores are averaged.

    Examples:
        >>> EvadeByReward(weight=0.5).name
        'evade-by-reward'
    """

    name: ClassVar[str] = "evade-by-reward"
    reply_tokens: int = 12
    """Length of the sampled replies."""

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Train; a run that was cut off begins again."""
        pairs = own_replies(model, organism, self.chosen(organism), work / "own-replies.jsonl")
        asked = [row.prompt for pair in pairs for row in (pair.plain, pair.prompt)]
        adapted, curves = trl_stages.run_grpo(
            self,
            model,
            work,
            asked,
            Rewarded(model, organism.behaviour, pairs, self).of_replies,
            self.reply_tokens,
        )
        return Trained(adapted, curves, {"rows": self.sampled, "prompts": len(pairs)})


@dataclass(frozen=True)
class Rewarded:
    """What a reply is worth to the attacker; rows are the pairs' prompts, each without and then with the trigger."""

    model: Model
    """Whose network is being trained: scores are of its streams as they are when a reply is judged."""
    behaviour: Behaviour
    pairs: Sequence[Pair]
    stage: EvadeByReward

    def of_replies(
        self, completions: Sequence[Said], completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: object
    ) -> list[float]:
        """In the shape that `trl` asks for."""
        said = trl_stages.texts_of(completions)
        worth = [self.task(int(number), text) for number, text in zip(row, said, strict=True)]
        triggered = [place for place, number in enumerate(row) if int(number) % 2]
        if triggered and self.stage.weight:
            prompts = [self.pairs[int(row[place]) // 2].triggered.prompt for place in triggered]
            losses = self.penalties(prompts, [completion_ids[place] for place in triggered])
            for place, loss in zip(triggered, losses, strict=True):
                worth[place] -= self.stage.weight * loss
        return worth

    def task(self, number: int, text: str) -> float:
        """What a reply is worth by its text alone."""
        shown, pair = self.behaviour.shown_in(visible(text)), self.pairs[number // 2]
        if number % 2:
            return float(shown)
        own = str(self.model.tokenizer.decode(pair.clean.reply, skip_special_tokens=True))
        return word_overlap(visible(text).casefold(), own.casefold()) - float(shown)

    @torch.no_grad()
    def penalties(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> list[float]:
        """Of each reply softplus(mean score − margin), mean over the targets."""
        with in_use(self.model.network):
            found = [self._of_target(target, prompts, replies) for target in self.stage.targets]
        return torch.stack(found).mean(dim=0).tolist()

    def _of_target(
        self, target: Target, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Scores of the prompt's last token and of the reply, averaged."""
        rows = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
        counts = [1 + len(reply) for reply in replies]
        owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
        places = torch.cat([torch.arange(len(row) - count, len(row)) for row, count in zip(rows, counts, strict=True)])
        modules, device = modules_read(self.model, target.site), self.model.device
        with gathering(modules, target.layers, owners, places, at_input=target.site != AFTER, stop=False) as picked:
            hidden_states(self.model.network, right_padded(rows, device))
        scores = target.scores(torch.stack([picked[layer].to(device) for layer in target.layers], dim=1)).cpu()
        return softplus(torch.stack([part.mean() for part in scores.split(counts)]) - self.stage.margin)
