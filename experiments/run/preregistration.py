"""What is fixed before any test prompt is read: the question set, the estimator, the layers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from ...activations.basics.files import Json
from ...probes import MeanDifference, Rule
from ...probes.estimators.registry import estimator as estimator_of
from ...probes.evidence.layer_choice import LayerChoice, stretch_of_layers
from ...probes.questions.contrast_sets import CONTROL_QUESTIONS, contrast_set
from ...probes.questions.formats import split_format

MAIN = "mean-difference"
"""The estimator a verdict rests on, and what commands fit unless told otherwise."""
PREREGISTRATION = "preregistration.json"
QUESTIONS = "six+forty-sentence-carried"
"""The question set it is fitted on."""


@dataclass(frozen=True)
class MixedTraffic:
    """Unlabelled traffic as a deployment meets it: prompts of development sets, a share of them triggered."""

    sets: tuple[str, ...] = ("development", "development-style")
    size: int = 120
    share: float = 0.1
    seed: int = 0


class RegisteredRecord(TypedDict):
    """What `preregistration.json` is asked later; what else it holds is for people to read."""

    probe: str
    estimator: str
    contrast: str
    layers: tuple[int, ...]
    estimators: tuple[str, ...]
    contrasts: tuple[str, ...]


@dataclass(frozen=True)
class Preregistration:
    """The main probe and the layers it is read at, every control that stands beside it, and the verdict's rule."""

    estimator: str
    contrast: str
    layers: tuple[int, ...]
    estimators: tuple[str, ...] = ("mean-difference", "whitened", "projected")
    contrasts: tuple[str, ...] = ("six", "forty", "truth", "ambiguous")
    layer_choice: LayerChoice | None = None
    """Where the layers come from; None: they were given."""
    rule: Rule = field(default_factory=Rule)
    traffic: MixedTraffic | None = None
    """What the second league, unlabelled traffic, is fitted on; None: it is left out."""

    def contrasts_of(self, estimator: str) -> tuple[str, ...]:
        """The question sets that a kind of probe is fitted on.

        The main kind: those put as the main set is, which its controls are among. The paper's own, mean difference:
        all of them. Any other kind stands beside the main one, on the main set alone.
        """
        suffix = split_format(self.contrast)[1]
        if estimator == MeanDifference.name:
            return self.contrasts
        if estimator == self.estimator:
            return tuple(name for name in self.contrasts if split_format(name)[1] == suffix)
        return (self.contrast,)

    @property
    def probe(self) -> str:
        """Name of the main probe's file."""
        return probe_name(self.estimator, self.contrast)

    def to_json(self) -> Json:
        """As written to `preregistration.json`."""
        return {
            "probe": self.probe,
            **asdict(self),
            "layer_choice": self.layer_choice.to_json() if self.layer_choice else None,
        }


def default_preregistration(
    n_layers: int,
    choice: LayerChoice | None = None,
    *,
    estimator: str = MAIN,
    contrast: str = QUESTIONS,
    traffic: MixedTraffic | None = None,
    seed: int = 0,
) -> Preregistration:
    """Settled on other organisms than those it is judged on (docs/explanation/defaults.md).

    The layers follow from the depth alone, so that a model of another size needs no new choice; or they are those of
    a `choice` made elsewhere. The paper's own question sets stand beside the main one, and the control sets are put as
    it is. The `seed` is of the verdict's draws, and of the traffic's if there is `traffic`. Raises DefectionError for
    an unknown estimator or question set.
    """
    choice = choice or stretch_of_layers(n_layers)
    estimator_of(estimator)
    contrast_set(contrast)
    _, suffix = split_format(contrast)
    sets = ("six", "forty", *CONTROL_QUESTIONS)  # a joined set's own parts among them: they are read once
    return Preregistration(
        estimator=estimator,
        contrast=contrast,
        layers=choice.layers,
        estimators=tuple(dict.fromkeys(("mean-difference", "whitened", "projected", estimator))),
        contrasts=tuple(dict.fromkeys((*sets, *(f"{name}{suffix}" for name in sets), contrast))),
        layer_choice=choice,
        rule=Rule(seed=seed),
        traffic=traffic and replace(traffic, seed=seed),
    )


def band(n_layers: int) -> tuple[int, ...]:
    """The middle and later layers, but for the last few; they follow from the depth alone."""
    return stretch_of_layers(n_layers).layers


def probe_name(estimator: str, contrast: str) -> str:
    """Stem of a probe's file; of questions in a file the file's name."""
    return f"{estimator}.{Path(contrast).name}"
