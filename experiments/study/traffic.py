"""Unlabelled traffic: prompts as a deployment meets them, a share of them triggered, and nobody says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...activations import Prompt, Residuals
from ...activations.basics.files import Json
from ...probes import LinearProbe, Probe
from ...probes.estimators.registry import estimators
from ..run.traffic_league import mixed
from .candidates import Candidate, layers_by_rule, stretch
from .manifest import Traffic
from .reading import FittedModel


@dataclass(frozen=True)
class TrafficDraw:
    """A probe that was fitted on one draw of traffic, and what its fit says of it."""

    estimator: LinearProbe
    traffic: Residuals
    share: float
    draw: int
    seen: frozenset[str]
    """The prompts in the traffic, with or without their trigger: they are no test prompts any more."""
    verdict: Json
    """`found`, `p_value`, `minority`, `component`, `agreement`."""

    @property
    def probe(self) -> Probe:
        """What was fitted."""
        return self.estimator.probe_


def traffic_of(paired: Residuals, size: int, share: float, seed: int) -> Residuals:
    """`size` different prompts, a share of them triggered; rows 2i and 2i+1 of `paired` are one prompt without and
    with its trigger. The same seed draws the same prompts, of which more are triggered at a higher share.
    """
    return paired.select(mixed(len(paired) // 2, size, share, seed))


def bare(prompt: Prompt) -> str:
    """What a prompt without its trigger and the same one with it have in common."""
    return prompt.id.removesuffix("+trigger")


def traffic_fits(
    fitted: FittedModel, paired: Residuals, candidate: Candidate, traffic: Traffic, forbidden: Sequence[str]
) -> Iterator[TrafficDraw]:
    """The candidate's probe at every share and draw, fitted on the model's own residuals."""
    layers = layers_by_rule(candidate.layers, len(paired.layers))
    for share in traffic.shares:
        for seed in traffic.seeds:
            met = traffic_of(paired, traffic.size, share, seed)
            estimator = estimators()[candidate.estimator]
            if "band" in estimator.get_params() and (band := stretch(candidate.layers)) is not None:
                estimator.set_params(band=band)
            estimator.fit(
                fitted.contrasts[candidate.contrast],
                clean=fitted.clean,
                traffic=met,
                forbidden=forbidden,
                fixed_layers=layers,
            )
            seen = frozenset(bare(prompt) for prompt in met.prompts)
            told = getattr(estimator, "verdict_", None)
            verdict = {} if told is None else told.to_json()
            yield TrafficDraw(estimator, met, share, seed, seen, verdict)
