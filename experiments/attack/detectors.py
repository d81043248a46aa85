"""Whoever may still catch an attacked organism: each fitted on one model, and asked about it or about another.

A detector is a way to fit: on a model as it was before an attack it gives the frozen detector, on the attacked one what
a defender has who fits the same recipe again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Residuals
from ...activations.prompts.rendered import rendered
from ...activations.reading.batching import shared_by_all
from ...probes import (
    AttentionProbe,
    BaseDifference,
    LayerConvergence,
    Mahalanobis,
    Probe,
    ProbeEstimator,
    Ragged,
    UnlabelledTraffic,
    against_base,
)
from ...probes.estimators.diffing import SAW as SAW_BASE
from ...probes.estimators.registry import estimator, saveable
from ...training.evasion.target import Target
from ..run.beside_base import SAW as BASE_AND_CLEAN
from .bundle import CLEAN, OTHERS, QUESTIONS, TRAFFIC, Bundle
from .plan import AttackSettings

Scorer = Callable[[Bundle, str], Float[Tensor, "prompt"]]
"""Scores one kind of prompts of a model's bundle, higher for more defecting."""

QUESTIONS_ONLY, AND_CLEAN, CLEAN_ALONE = "questions only", "questions + clean prompts", "clean prompts"
AND_TRAFFIC = "questions + unlabelled traffic"
ATTENTION_STEPS = 200
FEW = 4
"""Layers that every token is read at."""
EARLIER, LATER = "earlier layers", "later layers"


@dataclass(frozen=True)
class Detector:
    """One recipe."""

    name: str
    saw: str
    """Its league: what a fit needs."""
    unseen: str
    """What of it the attacker had not met: `layers`, `questions`, `estimator`, `method`; empty for the target."""
    fit: Callable[[Bundle], Scorer]
    costly: bool = False
    """Whether it reads every token, which is done of few models."""


def target_of(probe: Probe, name: str, *, every_layer: bool = False) -> Target:
    """What an attacker who holds a probe knows: its band as `Probe.score` averages it, or every layer by itself."""
    columns = [probe.layers.index(layer) for layer in (probe.layers if every_layer else probe.fixed_layers)]
    kept = [column for column in columns if bool(probe.directions[column].any())] if every_layer else columns
    return Target(
        name,
        tuple(probe.layers[column] for column in kept),
        probe.directions[kept],
        probe.offsets[kept],
        probe.scales[kept],
        probe.position,
        probe.site,
        each=every_layer,
    )


def detectors(
    probes: Sequence[tuple[str, Probe]], settings: AttackSettings, n_layers: int, *, base: bool
) -> list[Detector]:
    """The attacked probes first, then what the attacker had not met; `base`: whether the base is there to compare."""
    probe = probes[0][1]
    found = [Detector(each, one.saw, "", refit(one)) for each, one in probes]
    known = set().union(*(one.layers if settings.every_layer else one.fixed_layers for _, one in probes))
    band = probe.fixed_layers
    for where, layers in other_layers(known, _directed(probe, n_layers)).items():
        found.append(Detector(where, probe.saw, "layers", refit(probe, layers=layers)))
    found.append(Detector(f"questions: {settings.questions}", probe.saw, "questions", refit(probe, questions=OTHERS)))
    for kind in settings.estimators:
        if kind not in {one.estimator for _, one in probes}:
            found.append(Detector(kind, AND_CLEAN, "estimator", refit(probe, kind=kind)))
    found.append(Detector("mahalanobis", CLEAN_ALONE, "method", monitor(Mahalanobis(), band)))
    found.append(Detector("layer-convergence", CLEAN_ALONE, "method", monitor(LayerConvergence(), band)))
    if UnlabelledTraffic.name not in {one.estimator for _, one in probes}:
        found.append(Detector(UnlabelledTraffic.name, AND_TRAFFIC, "method", refit(probe, kind=UnlabelledTraffic.name)))
    found.append(Detector("probe, both tails", AND_CLEAN, "method", both_tails(probe)))
    few = spread_over(band)
    found.append(Detector("maximum over tokens", probe.saw, "method", over_tokens(probe, few), costly=True))
    found.append(Detector("attention over tokens", QUESTIONS_ONLY, "method", attention(few), costly=True))
    if base:
        found.append(
            Detector("base difference, size", BASE_AND_CLEAN, "method", monitor(BaseDifference(), band, Bundle.changed))
        )
        if probe.estimator in saveable():
            found.append(Detector("base difference, questions", SAW_BASE, "method", changed_along(probe)))
    return found


def other_layers(known: set[int], asked: Sequence[int]) -> dict[str, list[int]]:
    """Of the layers that could be asked, those before and after what an attacker knows."""
    before = [layer for layer in asked if layer < min(known)]
    after = [layer for layer in asked if layer > max(known)]
    return {name: layers for name, layers in ((EARLIER, before), (LATER, after)) if layers}


def _directed(probe: Probe, n_layers: int) -> list[int]:
    """The model's layers but for those where the probe was fitted and has no direction, as one of traffic has not."""
    empty = {layer for layer, found in zip(probe.layers, probe.directions, strict=True) if not bool(found.any())}
    return [layer for layer in range(n_layers) if layer not in empty]


def spread_over(band: Sequence[int]) -> list[int]:
    """A few layers of a band, from its first to its last."""
    places = torch.linspace(0, len(band) - 1, min(FEW, len(band))).round().int().tolist()
    return [band[place] for place in dict.fromkeys(places)]


def frozen(probe: Probe, layers: Sequence[int] | None = None) -> Scorer:
    """A probe as it stands, asked about whatever model, which it takes for its own."""

    def score(bundle: Bundle, what: str) -> Tensor:
        return probe.score(replace(bundle.of(what), model=probe.model), layers)

    return score


def refit(
    probe: Probe, *, kind: str | None = None, questions: str = QUESTIONS, layers: Sequence[int] | None = None
) -> Callable[[Bundle], Scorer]:
    """The probe's recipe, or with another kind, other questions or other layers."""
    name = kind or probe.estimator

    def fit(bundle: Bundle) -> Scorer:
        fitted = fitted_probe(bundle, name, questions, probe.fixed_layers)
        return frozen(fitted, layers)

    return fit


def fitted_probe(bundle: Bundle, name: str, questions: str, band: Sequence[int]) -> Probe:
    """A kind of probe on a bundle's questions, with its clean prompts, and its traffic where the kind takes that."""
    traffic = name not in saveable()
    recipe = estimator(name, traffic=traffic)
    if isinstance(recipe, UnlabelledTraffic):
        recipe.set_params(draws=0)  # the direction is wanted here; whether there is a minority is `strings` to say
    made: Probe = recipe.fit(
        bundle.of(questions),
        clean=bundle.of(CLEAN),
        traffic=bundle.of(TRAFFIC) if traffic else None,
        forbidden=bundle.forbidden,
        fixed_layers=None if traffic else band,
    ).probe_
    return made


def monitor(
    kind: ProbeEstimator, band: Sequence[int], read: Callable[[Bundle, str], Residuals] = Bundle.of
) -> Callable[[Bundle], Scorer]:
    """A monitor of clean prompts at the band's layers, the mean of its standardised scores over them."""

    def fit(bundle: Bundle) -> Scorer:
        fitted = type(kind)(**kind.get_params()).fit(read(bundle, CLEAN).at_layers(band))
        own = bundle.model.identity

        def score(other: Bundle, what: str) -> Tensor:
            scores: Tensor = fitted.decision_function(replace(read(other, what).at_layers(band), model=own))
            return scores.double().mean(dim=1)

        return score

    return fit


def both_tails(probe: Probe) -> Callable[[Bundle], Scorer]:
    """How far the recipe's score lies from the middle of clean prompts', on whichever side: an attack may overshoot."""

    def fit(bundle: Bundle) -> Scorer:
        score = refit(probe)(bundle)
        return off_middle(score, float(score(bundle, CLEAN).median()))

    return fit


def off_middle(score: Scorer, middle: float) -> Scorer:
    """How far a score lies from a middle, on whichever side."""
    return lambda bundle, what: (score(bundle, what) - middle).abs()


def over_tokens(probe: Probe, layers: Sequence[int]) -> Callable[[Bundle], Scorer]:
    """The highest score of any token that is the prompt's own, by the recipe refitted at the last one."""

    def fit(bundle: Bundle) -> Scorer:
        fitted = fitted_probe(bundle, probe.estimator, QUESTIONS, probe.fixed_layers).at(layers)

        def score(other: Bundle, what: str) -> Tensor:
            read = other.tokens(what, layers)
            by_token = target_of(fitted, "").scores(read.values)
            return torch.stack([part.max() for part in own_tokens(other, read, by_token)])

        return score

    return fit


def attention(layers: Sequence[int]) -> Callable[[Bundle], Scorer]:
    """A probe that learns from the questions' tokens which of them to read, at the middle one of some layers."""
    middle = [layers[len(layers) // 2]]

    def fit(bundle: Bundle) -> Scorer:
        read = bundle.tokens(QUESTIONS, layers).at_layers(middle)
        marks = [bool(prompt.extra["defecting"]) for prompt in read.prompts]
        fitted = AttentionProbe(max_steps=ATTENTION_STEPS).fit(Ragged.of(read), torch.tensor(marks))

        def score(other: Bundle, what: str) -> Tensor:
            read = other.tokens(what, layers).at_layers(middle)
            scores: Tensor = fitted.decision_function(Ragged.of(read))
            return scores[:, 0]

        return score

    return fit


def own_tokens(bundle: Bundle, read: Residuals, by_token: Float[Tensor, "token"]) -> list[Float[Tensor, "own"]]:
    """Each prompt's scores without those of the tokens that all of them begin with: a template says nothing of one."""
    ids = [row.ids for row in rendered(bundle.model, list(read.prompts))]
    alike = shared_by_all(ids)
    return [part[alike:] for part in by_token.split([len(row) for row in ids])]


def changed_along(probe: Probe) -> Callable[[Bundle], Scorer]:
    """The recipe's direction, read in the difference to the base."""

    def fit(bundle: Bundle) -> Scorer:
        fitted = fitted_probe(bundle, probe.estimator, QUESTIONS, probe.fixed_layers)
        read = against_base(fitted, bundle.changed(CLEAN))

        def score(other: Bundle, what: str) -> Tensor:
            return read.score(replace(other.changed(what), model=read.model, site=read.site))

        return score

    return fit


def refuse_unlike(probes: Sequence[tuple[str, Probe]]) -> None:
    """DefectionError for probes that do not read the same token and site: one reading could not serve them all."""
    places = {(probe.position, probe.site) for _, probe in probes}
    if len(places) > 1:
        raise DefectionError(
            f"the probes read different places ({' and '.join(' '.join(each) for each in sorted(places))}); "
            "attack them one by one"
        )
