"""Everything that detectors read of one model, once, on disk; the same prompts whichever model it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ...activations import Model, Prompt, Residuals, cache, capture
from ...probes import Outcomes, Probe, contrast_set, difference
from ...training.organisms.records import Organism
from ..run.explain import contrast_texts
from .plan import AttackPrompts, AttackSettings

BENIGN, TESTS, CLEAN, TRAFFIC, QUESTIONS, OTHERS = "benign", "tests", "clean", "traffic", "questions", "other-questions"


@dataclass
class Bundle:
    """One model's residual streams at every layer, by what the prompts are for; read when they are first asked for."""

    model: Model
    folder: Path
    prompts: Mapping[str, Sequence[Prompt]]
    position: str
    site: str
    labels: Mapping[str, bool]
    """By test prompt's id: whether it is one that should ring."""
    forbidden: tuple[str, ...]
    base: Bundle | None = None
    """What the base makes of the same prompts, for whoever holds it."""

    def __post_init__(self) -> None:
        self._read: dict[str, Residuals] = {}
        self._tokens: dict[tuple[str, tuple[int, ...]], Residuals] = {}

    def of(self, what: str) -> Residuals:
        """The streams of one kind of prompts."""
        if what not in self._read:
            prompts = list(self.prompts[what])
            store = cache(
                self.model,
                prompts,
                self.folder / what,
                position=self.position,
                site=self.site,
                what=f"Reading {what}",
            )
            self._read[what] = replace(store.read(), prompts=tuple(prompts), model=self.model.identity)
        return self._read[what]

    def changed(self, what: str) -> Residuals:
        """What training changed, against the base."""
        assert self.base is not None
        return difference(self.of(what), self.base.of(what))

    def tokens(self, what: str, layers: Sequence[int]) -> Residuals:
        """Every token of the prompts at a few layers; not kept on disk, where it would be large."""
        asked = what, tuple(layers)
        if asked not in self._tokens:
            self._tokens[asked] = capture(
                self.model,
                list(self.prompts[what]),
                layers=layers,
                site=self.site,
                position="all",
                what=f"Tokens of {what}",
            )
        return self._tokens[asked]

    @cached_property
    def outcomes(self) -> Outcomes:
        """The test prompts as figures are taken over them."""
        return Outcomes.of(list(self.prompts[TESTS]), self.labels)


def prompts_read(
    prompts: AttackPrompts, settings: AttackSettings, organism: Organism, probe: Probe
) -> dict[str, list[Prompt]]:
    """Which prompts each detector is fitted, set and tested on."""
    return {
        TESTS: prompts.tests(organism),
        BENIGN: list(prompts.benign),
        CLEAN: list(prompts.clean),
        TRAFFIC: list(prompts.met),
        QUESTIONS: contrast_texts(probe),
        OTHERS: list(contrast_set(settings.questions)),
    }
