"""The base model, read beside an organism: what a defender who holds it has more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...activations import Model, Residuals, cache, load_model
from ...activations.models.hardware import Hardware
from ...probes import BaseDifference, ProbeEstimator, WeightChange, WeightDirections, difference, weight_change

SAW = "clean prompts + base model"


@dataclass(frozen=True)
class BesideBase:
    """An organism's base, whose residuals are read into stores of their own."""

    tuned: Model
    base: Model
    out: Path

    @classmethod
    def of(cls, tuned: Model, source: str | Path, out: Path, device: str | Hardware) -> BesideBase:
        """With the base of that name or path; `out` is where the stores lie."""
        return cls(tuned, load_model(source, device=device), out)

    @cached_property
    def change(self) -> WeightChange:
        """What training changed in the matrices that read the stream."""
        return weight_change(self.tuned, self.base)

    def changed(self, residuals: Residuals, name: str) -> Residuals:
        """The organism's residuals less the base's on the same prompts."""
        what = f"Reading {name} (base)"
        store = cache(self.base, residuals.prompts, self.out / f"{name}-base", layers=residuals.layers, what=what)
        return difference(residuals, store.read())

    def fit(self, kind: ProbeEstimator, clean: Residuals) -> ProbeEstimator:
        """A detector that holds the base, on clean prompts."""
        if isinstance(kind, WeightDirections):
            return kind.fit(clean, change=self.change)
        return kind.fit(self.changed(clean, "clean"))


def reads_differences(kind: object) -> bool:
    """Whether its rows are differences to the base, and not the organism's own."""
    return isinstance(kind, BaseDifference)
