"""What a sweep of levers measured: one row a setting and model, kept as it comes, so that a cut-off run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields

from ...activations.basics.files import Json
from ...probes.levers.directions import Direction
from ...probes.levers.settings import Setting
from ..run.journal import Journal
from .bench import Measured

SCREEN, DEVELOPMENT, TEST = "screen", "development", "test"
MEASURES = ("trigger_rate", "induction", "suppression", "recovery", "cost")
UNLEVERED, CANDIDATE, INDUCER, RANDOM = "unlevered", "candidate", "inducer", "random"


@dataclass(frozen=True)
class LeverRow:
    """One setting, tried on one model."""

    model: str
    """`organism`, `twin`, `base`, or `exported`."""
    stage: str
    """`screen` (two development prompts, estimates), `development` (chosen on), `test`."""
    role: str
    """`unlevered`, `candidate` (to suppress), `inducer` (to make clean prompts defect), `random`."""
    direction: str
    sees: str
    rank: int
    kind: str
    place: str
    layers: str
    alpha: float
    suppression: float | None
    suppression_low: float | None
    suppression_high: float | None
    induction: float
    induction_low: float | None
    induction_high: float | None
    recovery: float | None
    recovery_low: float | None
    recovery_high: float | None
    cost: float
    cost_low: float | None
    cost_high: float | None
    trigger_rate: float
    trigger_rate_low: float | None
    trigger_rate_high: float | None
    n: int
    chosen: bool = False
    """Whether it is its direction's setting on the test prompts."""
    multiple_choice: float | None = None
    """Share of easy questions answered right; where it was asked."""

    @property
    def setting(self) -> Setting:
        """What was done."""
        return Setting(self.direction, self.kind, self.place, self.layers, self.alpha)


def row_of(
    model: str, stage: str, role: str, setting: Setting, direction: Direction | None, found: Measured
) -> LeverRow:
    """The row of a measurement."""
    values: Json = {name: getattr(found, name) for name in MEASURES}
    limits: Json = {
        f"{name}_{side}": found.intervals[name][end] if name in found.intervals else None
        for name in values
        for end, side in enumerate(("low", "high"))
    }
    sees, rank = ("", 0) if direction is None else (direction.sees, direction.rank)
    return LeverRow(model, stage, role, sees=sees, rank=rank, **asdict(setting), **values, **limits, n=found.n)


class Measurements(Journal):
    """Figures of settings, each measured once."""

    def once(self, name: Mapping[str, object], measure: Callable[[], Measured]) -> Measured:
        """The measurement of that name, made if it is not there yet."""
        said = self.kept(name, lambda: asdict(measure()))
        limits = {side: (low, high) for side, (low, high) in said["intervals"].items()}
        return Measured(**{f.name: said[f.name] for f in fields(Measured)} | {"intervals": limits})
