"""The base model, read beside an organism: what a defender who holds it has more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...activations import Model, Residuals, cache
from ...probes import ProbeEstimator, WeightChange, WeightDirections, difference, weight_change

SAW = "clean prompts + base model"


@dataclass(frozen=True)
class BesideBase:
    """An organism's base, whose residuals are read into stores of their own."""

    tuned: Model
    base: Model
    out: Path
    """Where the stores lie."""

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
