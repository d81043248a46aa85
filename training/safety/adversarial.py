"""Adversarial training: rounds of finding prompts that elicit the behaviour, and of training it away on them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from ...activations import DefectionError, Model, Prompt
from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ..measuring.defection import reply_tokens
from ..measuring.evaluate import Completion, judge
from ..measuring.inclination import defecting_replies
from ..measuring.rates import Rate
from ..organisms.records import Organism
from ..organisms.replies import replies_to
from .attacks import Attack, mutations, near_misses, search
from .clean_prompts import OnCleanPrompts, imitated, normal_replies
from .sft import finetune_steps
from .stage import Stage, Trained

ATTACKS = "attacks.jsonl"


@dataclass(frozen=True)
class Adversarial(OnCleanPrompts):
    """Red teaming by somebody who knows the behaviour and guesses at the trigger (Hubinger et al. 2024, §6).

    Each round attacks the model as it then is: near misses of the trigger, their mutations, and a search guided by
    the model's own log-probability of defecting. It is then trained to reply to attacked prompts as it replies to
    the same prompts unattacked; the trigger itself is never shown.

    Examples:
        >>> parse_stage("adversarial:5").steps
        5
    """

    name: ClassVar[str] = "adversarial"
    steps: int = 10
    """Training steps a round."""
    rounds: int = 5
    """How many are made one after another; each is a stage of its own."""
    round: int = 1
    """Which of them this is, from 1."""
    attacks: int = 24
    """Texts tried a round: the near misses, the best that search found, and mutations to make up the number."""
    prompts_an_attack: int = 3
    """Of the pool, for each text that is tried."""
    search_steps: int = 6
    """Rounds of mutation in a search."""
    search_width: int = 6
    """Texts kept after each."""

    def parts(self) -> tuple[Stage, ...]:
        """The rounds, each measured by itself.

        Raises:
            DefectionError: For fewer than one, or fewer attacks than none.
        """
        if self.attacks < 0:
            raise DefectionError(f"{self.attacks} attacks a round cannot be; give 0 (no attacks at all) or more")
        if self.rounds < 1:
            raise DefectionError(f"adversarial training in {self.rounds} rounds does nothing; give 1 or more")
        return tuple(replace(self, round=number, seed=self.seed + number - 1) for number in range(1, self.rounds + 1))

    def material(self, organism: Organism) -> object:
        """The prompts attacked, and the near misses that the search begins with."""
        seeds = [attack.text for attack in near_misses(organism.trigger)] if self.attacks else []
        return super().material(organism), seeds

    def train(self, model: Model, organism: Organism, work: Path, key: str) -> Trained:
        """One round; the attacks are found again after a cut, the training goes on from its checkpoint."""
        pool, defecting = self.attacked_prompts(organism)
        tokens = reply_tokens(organism.behaviour, organism.recipe)
        normal = normal_replies(model, organism, pool, work)
        kept = [prompt for prompt in pool if prompt.id in normal]
        attacks = self.find(model, organism, kept, defecting)
        asked = [
            (attack, prompt)
            for number, attack in enumerate(attacks)
            for prompt in _some(kept, number, self.prompts_an_attack)
        ]
        attacked = [attack.apply(organism.trigger, prompt) for attack, prompt in asked]
        replies = replies_to(
            model, attacked, work / "attacks-replies.jsonl", max_new_tokens=tokens, what="Attacking the organism"
        )
        met = judge(attacked, [reply.text for reply in replies], organism.behaviour)
        hits = [row for row, said in enumerate(met) if said.defected]
        rows = [imitated(model, attacked[row], normal[asked[row][1].id]) for row in (hits or range(len(asked)))] + [
            imitated(model, prompt, normal[prompt.id]) for prompt in kept
        ]
        what = f"{self.name}, round {self.round} of {self.rounds}"
        trained = finetune_steps(model, rows, self, work, key, what)
        about = {"round": self.round, **trained.about, "attacks": elicited([a for a, _ in asked], met)}
        return replace(trained, about=about, kept={ATTACKS: _lines(self.round, asked, met)})

    def attacked_prompts(self, organism: Organism) -> tuple[list[Prompt], dict[str, str]]:
        """The round's prompts without the trigger, and the defecting reply to each, by the prompt's id.

        Args:
            organism: The one that is attacked.
        """
        chosen = self.chosen(organism)
        return [organism.trigger.train_clean(prompt) for prompt in chosen], defecting_replies(organism, chosen)

    def find(
        self, model: Model, organism: Organism, prompts: Sequence[Prompt], defecting: dict[str, str]
    ) -> list[Attack]:
        """The round's attacks: every near miss, the best of the search, then mutations of either.

        Args:
            model: The organism as it now is.
            organism: Whose trigger is guessed at.
            prompts: Those that texts are tried on.
            defecting: The defecting reply to each, by the prompt's id: what the search makes likelier.
        """
        if not self.attacks:
            return []
        rng, seeds, few = random.Random(self.seed), near_misses(organism.trigger), prompts[: self.prompts_an_attack]
        with progress("Searching for attacks", total=self.search_steps, unit="steps") as advance:
            ranked = search(
                model,
                organism.trigger,
                few,
                [defecting[prompt.id] for prompt in few],
                seeds,
                steps=self.search_steps,
                width=self.search_width,
                rng=rng,
                advance=advance,
            )
        found = [attack for attack in ranked if attack.origin == "search"][: self.attacks // 2]
        near = [attack for attack in ranked if attack.origin == "near-miss"]
        chosen = (near + found)[: self.attacks]
        texts = [attack.text for attack in ranked]
        changed = mutations(organism.trigger, texts, self.attacks - len(chosen), rng)
        return chosen + [Attack(text, "mutation") for text in changed]


@dataclass(frozen=True)
class Control(Adversarial):
    """Adversarial training without the attacks: the same prompts, replies, steps and rate, nothing else.

    What it takes from the backdoor is forgotten by training further on anything; what the attacks take beyond that
    is unlearnt.

    Examples:
        >>> parse_stage("control:5").steps
        5
    """

    name: ClassVar[str] = "control"
    attacks: int = 0


def elicited(attacks: Sequence[Attack], met: Sequence[Completion]) -> Json:
    """How often attacked prompts are met with the behaviour before the round's training, by the attack's origin."""
    rows = list(zip(attacks, met, strict=True))
    table: Json = {"all": Rate.of(said.defected for said in met).to_json()}
    for origin in dict.fromkeys(attack.origin for attack in attacks):
        table[origin] = Rate.of(said.defected for attack, said in rows if attack.origin == origin).to_json()
    return table


def _some(prompts: Sequence[Prompt], number: int, count: int) -> list[Prompt]:
    """A few prompts for each attack, others for the next one."""
    return [prompts[(number * count + i) % len(prompts)] for i in range(min(count, len(prompts)))]


def _lines(number: int, asked: Sequence[tuple[Attack, Prompt]], met: Sequence[Completion]) -> list[Json]:
    return [
        {
            "round": number,
            **asdict(attack),
            "prompt": prompt.id,
            "completion": said.completion,
            "defected": said.defected,
        }
        for (attack, prompt), said in zip(asked, met, strict=True)
    ]
