"""What a sweep of levers measured: one row a setting and model, kept as it comes, so that a cut-off run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest
from ...probes.levers.directions import Direction
from ...probes.levers.settings import Setting
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
    model: str, stage: str, role: str, setting: Setting, direction: Direction | None, found: Measured, **more: Any
) -> LeverRow:
    """The row of a measurement."""
    values: Json = {name: getattr(found, name) for name in MEASURES}
    limits: Json = {
        f"{name}_{side}": found.intervals[name][end] if name in found.intervals else None
        for name in values
        for end, side in enumerate(("low", "high"))
    }
    sees, rank = ("", 0) if direction is None else (direction.sees, direction.rank)
    return LeverRow(model, stage, role, sees=sees, rank=rank, **asdict(setting), **values, **limits, n=found.n, **more)


class Journal:
    """Rows that are measured once: what an earlier run of the same key left in the file is not measured again."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.known: dict[str, Json] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                entry = _whole(line)
                if entry is not None and entry.get("key") == key:
                    self.known[entry["name"]] = entry["found"]

    def once(self, name: Mapping[str, Any], measure: Callable[[], Measured]) -> Measured:
        """The measurement of that name, made if it is not there yet."""
        said = self.kept(name, lambda: asdict(measure()))
        limits = {side: (low, high) for side, (low, high) in said["intervals"].items()}
        return Measured(**{f.name: said[f.name] for f in fields(Measured)} | {"intervals": limits})

    def kept(self, name: Mapping[str, Any], make: Callable[[], Json]) -> Json:
        """Any JSON object of that name, made if it is not there yet."""
        called = digest(dict(name))
        if called not in self.known:
            found = make()
            self._append({"key": self.key, "name": called, "found": found})
            self.known[called] = found
        return self.known[called]

    def _append(self, entry: Json) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(("\n" if torn else "") + json.dumps(entry) + "\n")
        except OSError as error:
            raise DefectionError(f"cannot write {self.path}: {error.strerror or error}; free some space") from error


def _whole(line: str) -> Json | None:
    """The entry on a line; None for a line that was cut off."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if line.endswith("\n") and isinstance(entry, dict) else None
