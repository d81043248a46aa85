"""What is fixed before any test prompt is read: the question set, the estimator, the layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..probes.estimator import LinearProbe
from ..probes.layer_choice import LayerChoice, stretch_of_layers
from ..probes.registry import estimator

MAIN = "projected"
"""The estimator a verdict rests on, and what commands fit unless told otherwise."""


@dataclass(frozen=True)
class Preregistration:
    """The main probe and the layers it is read at, and every control that stands beside it."""

    estimator: str
    contrast: str
    layers: tuple[int, ...]
    estimators: tuple[str, ...] = ("mean-difference", "whitened", "projected")
    contrasts: tuple[str, ...] = ("six", "forty", "truth", "ambiguous")
    layer_choice: LayerChoice | None = None
    """Where the layers come from; None: they were given."""

    @property
    def probe(self) -> str:
        """Name of the main probe's file."""
        return probe_name(self.estimator, self.contrast)

    def to_json(self) -> dict[str, Any]:
        """As written to `preregistration.json`."""
        return {
            "probe": self.probe,
            "estimator": self.estimator,
            "contrast": self.contrast,
            "layers": list(self.layers),
            "layer_choice": self.layer_choice.to_json() if self.layer_choice else None,
            "estimators": list(self.estimators),
            "contrasts": list(self.contrasts),
        }


def default_preregistration(n_layers: int, choice: LayerChoice | None = None) -> Preregistration:
    """Settled on other organisms than those it is judged on (experiments/DEVELOPMENT.md, fourth round).

    The layers follow from the depth alone, so that a model of another size needs no new choice; or they are those of
    a `choice` made elsewhere.
    """
    choice = choice or layer_choice(n_layers)
    sets = ("six", "forty", "truth", "ambiguous")
    return Preregistration(
        estimator=MAIN,
        contrast="forty-sentence-carried",
        layers=choice.layers,
        layer_choice=choice,
        contrasts=(*sets, *(f"{name}-sentence-carried" for name in sets)),
    )


def layer_choice(n_layers: int) -> LayerChoice:
    """The middle and later layers, but for the last few; they follow from the depth alone."""
    return stretch_of_layers(n_layers)


def band(n_layers: int) -> tuple[int, ...]:
    """The layers of `layer_choice`."""
    return layer_choice(n_layers).layers


def make_estimators(names: tuple[str, ...]) -> list[LinearProbe]:
    """Estimators by name, at their defaults; DefectionError for an unknown one."""
    return [estimator(name) for name in names]


def probe_name(estimator: str, contrast: str) -> str:
    """Stem of a probe's file."""
    return f"{estimator}.{contrast}"
