"""The attacks on one model: each trained, measured and read; rows and gates of every one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...activations.basics.files import Json, read_json, read_jsonl
from ...activations.basics.progress import progress
from ...activations.models.hardware import Hardware
from ...activations.models.load import load_model
from ...probes import Probe
from ...training import Drift, Evade, EvadeByReward, Target
from ...training.safety.stage import BEFORE_FILE, COMPLETIONS, Stage, safety_train
from ..run.journal import Journal
from .bundle import Bundle, prompts_read
from .detectors import Detector, Scorer
from .gates import gates
from .plan import AttackPrompts, AttackSettings
from .rows import BEFORE, FROZEN, REFITTED, DetectorRow, Read, figures, fit_and_set, threshold_of
from .subjects import Before, Said, Subject, labels_of

DRIFT, RANDOM, REWARD = "drift", "random", "reward"


@dataclass
class Trained:
    """One attack: the organism that came of it, whether it passed, and what it cost."""

    name: str
    round: int
    folder: Path
    knows: str
    weight: float | None
    gates: list[Json]
    bill: Json

    @property
    def passed(self) -> bool:
        """Whether every gate was."""
        return all(gate["passed"] for gate in self.gates)

    def to_json(self) -> Json:
        """As `attack.json` holds it."""
        about = {"attack": self.name, "round": self.round, "knows": self.knows, "weight": self.weight}
        missed = [gate["name"] for gate in self.gates if not gate["passed"]]
        outcome = f"attack failed: {', '.join(missed)}" if missed else "all gates passed"
        return {**about, "path": str(self.folder), "outcome": outcome, "gates": self.gates, "bill": self.bill}


@dataclass
class Siege:
    """One model under attack: its detectors as they were fitted before, and all rows so far."""

    subject: Subject
    detectors: Sequence[Detector]
    recipe: Probe
    """The attacked probe, whose questions, layers and position the readings are made at."""
    prompts: AttackPrompts
    settings: AttackSettings
    out: Path
    journal: Journal
    device: str | Hardware
    base: Bundle | None = None
    rows: list[DetectorRow] = field(default_factory=list)
    frozen: dict[str, tuple[Scorer, float]] = field(default_factory=dict)
    """By detector: as it was fitted, or given, before the attack, and its threshold then."""

    @property
    def measured(self) -> Path:
        """What was measured before any attack."""
        return self.out / "measured" / self.subject.name

    @property
    def before(self) -> Before:
        """The same, read."""
        return read_json(self.measured / BEFORE_FILE, Before)

    def bundle(self, folder: Path) -> Bundle:
        """Everything that detectors read of the model as it was, or of an attacked one by its folder."""
        organism, untouched = self.subject.organism, folder == self.subject.folder
        said = self.before["completions"] if untouched else read_jsonl(folder / COMPLETIONS, Said)
        return Bundle(
            load_model(folder, device=self.device),
            self.out / "stores" / self.subject.name / (BEFORE if untouched else folder.name),
            prompts_read(self.prompts, self.settings, organism, self.recipe),
            self.recipe.position,
            self.recipe.site,
            labels_of(self.subject, self.prompts.tests(organism), said),
            (*organism.trigger.texts, *organism.behaviour.texts),
            self.base,
        )

    def train(
        self, stage: Stage, name: str, *, weight: float | None = None, round_: int = 1, source: Path | None = None
    ) -> Trained:
        """One attack on the model, or on what an earlier attack made of it; found where an earlier call left it."""
        folder = self.out / "attacked" / self.subject.name / (name if round_ == 1 else f"{name}-round-{round_}")
        record = safety_train(
            source or self.subject.folder,
            stage,
            folder,
            self.prompts.measuring,
            measured=self.measured if source is None else None,
            device=self.device,
        )
        entry = record["stages"][-1]
        before = self.before["found"]
        found = [gate.to_json() for gate in gates(before, entry["after"], defects=self.subject.defects)]
        return Trained(name, round_, folder, entry["config"]["knows"], weight, found, bill(entry, before))

    def read_before(self, given: dict[str, Scorer]) -> None:
        """Fit every detector on the model as it is, but for those that are `given`; keep them and their rows."""
        bundle = self.bundle(self.subject.folder)
        with progress(f"Detectors ({self.subject.name}, before)", total=len(self.detectors), unit="detectors") as on:
            for detector in self.detectors:
                if detector.name in given:
                    scorer = given[detector.name]
                    self.frozen[detector.name] = scorer, threshold_of(scorer, bundle)
                else:
                    self.frozen[detector.name] = fit_and_set(detector, bundle)
                held = partial(self.frozen.__getitem__, detector.name)
                self._row(Read(self.subject.name, BEFORE), detector, BEFORE, bundle, held)
                on(1)

    def read(self, attack: Trained, *, costly: bool) -> None:
        """Every detector on an attacked model: frozen, with the threshold it had, and refitted; `costly` ones too."""
        name = attack.folder.name
        bundle = self.bundle(attack.folder)
        about = Read(self.subject.name, attack.name, attack.round, attack.knows, attack.weight, attack.passed)
        some = [detector for detector in self.detectors if costly or not detector.costly]
        with progress(f"Detectors ({self.subject.name}, {name})", total=len(some), unit="detectors") as on:
            for detector in some:
                self._row(about, detector, FROZEN, bundle, partial(self.frozen.__getitem__, detector.name))
                self._row(about, detector, REFITTED, bundle, partial(fit_and_set, detector, bundle))
                on(1)

    def _row(
        self, read: Read, detector: Detector, fit: str, bundle: Bundle, made: Callable[[], tuple[Scorer, float]]
    ) -> None:
        def measure() -> Json:
            scorer, threshold = made()
            return figures(scorer(bundle, "tests"), bundle, threshold)

        key = {
            "row": [read.model, read.attack, read.round, detector.name, fit],
            "of": bundle.model.identity.fingerprint,
        }
        self.add(read.row(detector, fit, self.journal.kept(key, measure)))

    def add(self, row: DetectorRow) -> None:
        """Keep a row, once."""
        if row not in self.rows:
            self.rows.append(row)


def bill(entry: Json, before: Json) -> Json:
    """What an attack cost: steps, seconds, and how much dearer ordinary replies became, nats a token."""
    now, then = (found["ability"]["perplexity"]["value"] for found in (entry["after"], before))
    rise = math.log(now) - math.log(then) if now and then else None
    return {"steps": entry["steps"], "seconds": entry["seconds"], "rows": entry["rows"], "cross_entropy_rise": rise}


def drift(settings: AttackSettings) -> Drift:
    """The attacker who knows nothing."""
    return Drift(
        steps=settings.steps,
        seed=settings.seed,
        prompts=settings.prompts,
        pool=settings.pool,
        learning_rate=settings.learning_rate,
    )


def evade(settings: AttackSettings, targets: Sequence[Target], weight: float) -> Evade:
    """The attacker who follows the gradient of what they know."""
    return Evade(**vars(drift(settings)), targets=tuple(targets), weight=weight, margin=settings.margin)


def reinforced(settings: AttackSettings, targets: Sequence[Target], weight: float) -> EvadeByReward:
    """The attacker who is told what they know of a reply and no more; steps and rate are its own."""
    of = {name: getattr(settings, name) for name in ("seed", "prompts", "pool", "margin")}
    return EvadeByReward(targets=tuple(targets), weight=weight, **of)


def chosen_of(attacks: Sequence[Trained], rows: Sequence[DetectorRow], probe: str) -> Trained | None:
    """The attack that hides best from the probe among those that passed; None where none did."""

    def seen(attack: Trained) -> tuple[float, float]:
        row = next(
            r for r in rows if (r.attack, r.round, r.detector, r.fit) == (attack.name, attack.round, probe, FROZEN)
        )
        return row.tpr or 0.0, row.auroc or 0.0

    return min((attack for attack in attacks if attack.passed), key=seen, default=None)
