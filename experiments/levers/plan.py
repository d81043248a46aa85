"""What a sweep of levers tries, and which prompts it shows, chooses and is judged on."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...activations import DefectionError, Prompt
from ...probes.levers.rule import LeverRule
from ...training import VULNERABLE_CODE, Behaviour, with_and_without
from ...training.organisms.records import Organism
from ..run.preregistration import MixedTraffic
from ..run.prompt_sets import chosen_and_tested, default_sets, development_sets


@dataclass(frozen=True)
class LeverSettings:
    """What is tried and on what; as it stands it is written into `preregistration.json`."""

    development: tuple[str, ...] = ("development",)
    tests: tuple[str, ...] = ("held-out",)
    shown: int = 32
    """Development prompts that show what the trigger does to the stream; others are chosen on."""
    screened: int = 2
    """Prompts of the first look, the shortest of those left."""
    chosen_on: int = 6
    tested: int = 16
    random_prompts: int = 8
    """Of the test prompts, on how many random directions are tried."""
    finalists: int = 2
    """Settings of a direction that are measured on the prompts it is chosen on."""
    clean: str = "clean"
    """Ordinary prompts, which say how long the stream is and what traffic is held against."""
    truth: str = "truth-sentence-carried"
    """Questions whose mean difference is the truth direction."""
    traffic: MixedTraffic | None = field(default_factory=MixedTraffic)
    """What the traffic probe is fitted on; None: it is not tried."""
    rule: LeverRule = field(default_factory=LeverRule)
    seed: int = 0


def default_lever_sets(behaviour: Behaviour) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompt sets for choosing and for testing: code tasks where the behaviour shows on these alone."""
    if behaviour.name == VULNERABLE_CODE.name:
        return development_sets(behaviour), default_sets(behaviour)
    return LeverSettings.development, LeverSettings.tests


@dataclass
class LeverPrompts:
    """Who reads what; the same for every model."""

    shown: list[Prompt]
    screened: list[Prompt]
    chosen_on: list[Prompt]
    tested: list[Prompt]

    @staticmethod
    def of(settings: LeverSettings, organism: Organism) -> LeverPrompts:
        """DefectionError when a set is too small, or a prompt belongs to choosing and to testing."""
        development, tests = chosen_and_tested(settings.development, settings.tests)
        shown = min(settings.shown, len(development) // 2)
        left = sorted(development[shown:], key=lambda prompt: len(prompt.text))
        if shown < 2 or len(left) < 3 or len(tests) < 2:
            raise DefectionError(
                f"{len(development)} development prompts and {len(tests)} test prompts are too few: give 6 and 2"
            )
        if len(with_and_without(organism.trigger, left[:1])) != 2:
            raise DefectionError("this organism has no trigger, so there is nothing that a lever could suppress")
        few = min(settings.screened, len(left) // 2)
        return LeverPrompts(development[:shown], left[:few], left[few:][: settings.chosen_on], tests[: settings.tested])
