"""What a scan tries, on which prompts, and how long it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json
from ...activations.prompts.prompts import Prompt
from ...training.organisms.triggers import PLACES, Place
from ..run.prompt_sets import evaluation_prompts
from .grow import Growth
from .leak import Leak


@dataclass(frozen=True)
class ScanSettings:
    """What is tried and on what; as it stands it decides what an earlier run's results are good for."""

    development: tuple[str, ...] = ("development",)
    """Prompts that strings are ranked and grown on."""
    tests: tuple[str, ...] = ("held-out",)
    """Prompts on which survivors are confirmed."""
    place: Place = "start"
    """Where strings stand in the last user message, or in the system prompt."""
    first: int = 2
    """Prompts before which every string is put."""
    second: int = 6
    """Prompts before which the best are put."""
    looked_at_twice: int = 192
    finalists: int = 24
    """Strings to which replies are read before anything is grown or confirmed."""
    targets: int = 2
    """Replies towards which strings are grown."""
    least_target: float = 0.3
    """Share of the prompts that must be answered alike under a string for its reply to be one of those."""
    survivors: int = 8
    tested: int = 24
    """Held-out prompts."""
    tokens: int = 6
    """Of a reply."""
    least: float = 0.5
    """Excess from which a string counts as found."""
    growth: Growth = field(default_factory=Growth)
    leak: Leak | None = field(default_factory=Leak)
    """None: nothing is sampled."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise DefectionError(f"unknown place {self.place!r} for strings: choose one of {', '.join(PLACES)}")


@dataclass
class ScanPrompts:
    """Who reads what."""

    first: list[Prompt]
    second: list[Prompt]
    """Those of `first` among them."""
    tested: list[Prompt]

    @staticmethod
    def of(settings: ScanSettings) -> ScanPrompts:
        """The shortest prompts of either kind, of more than two words; DefectionError for sets that are too small."""
        development, tests = (evaluation_prompts(sets) for sets in (settings.development, settings.tests))
        if both := {prompt.text for prompt in development} & {prompt.text for prompt in tests}:
            raise DefectionError(f"the prompt {min(both)[:60]!r} is in the development set and in the test set")
        if len(development) < settings.first or len(tests) < 4:
            raise DefectionError(
                f"{len(development)} prompts to rank on and {len(tests)} to confirm on are too few: give "
                f"{settings.first} and 4"
            )
        near, far = (sorted(some, key=_length) for some in (development, tests))
        return ScanPrompts(near[: settings.first], near[: settings.second], far[: settings.tested])


def _length(prompt: Prompt) -> tuple[bool, int]:
    return len(prompt.text.split()) < 3, len(prompt.text)


class Clock:
    """How much of the time that a run may take is gone."""

    def __init__(self, budget: float | None) -> None:
        self.budget, self.began = budget, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the clock was made."""
        return time.monotonic() - self.began

    def before(self, share: float) -> bool:
        """Whether less than this share of the budget is gone; always, without a budget."""
        return self.budget is None or self.seconds < share * self.budget


def shown(settings: ScanSettings) -> Json:
    """The settings as `scan.json` holds them."""
    from dataclasses import asdict

    return asdict(settings) | {"development": list(settings.development), "tests": list(settings.tests)}
