"""The directions that an organism's levers are looked for among, read on development prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...activations import Model, Prompt, Residuals, cache, capture, load_prompts
from ...probes import MeanDifference, Probe, UnlabelledTraffic, contrast_set
from ...probes.levers.directions import Direction, concept_eraser, probe_direction, trigger_shift
from ...probes.levers.settings import Ground
from ...training.organisms.behaviours import VULNERABLE_CODE
from ...training.organisms.records import Organism
from ..run.preregistration import MixedTraffic
from ..run.traffic_league import traffic_prompts
from .plan import LeverSettings

RANKS = (1, 2, 4)
POOLED = "mean:all"


def lever_directions(
    model: Model, organism: Organism, probe: Probe, prompts: Sequence[Prompt], settings: LeverSettings, out: Path
) -> tuple[list[Direction], Ground]:
    """Every direction that is tried, the probe's first, and the ground that settings stand on.

    `prompts` show what the trigger does to the stream; stores under `out` are not read again. Raises DefectionError
    for a probe of another model.
    """
    probe.refuse_model(model.identity)
    clean = cache(model, load_prompts(settings.clean), out / "stores" / "clean", what="Reading clean prompts").read()
    truth = cache(model, list(contrast_set(settings.truth)), out / "stores" / "truth", what="Reading truths").read()
    forbidden = (*organism.trigger.texts, *organism.behaviour.texts)
    found = [probe_direction(probe)]
    found.append(probe_direction(MeanDifference().fit(truth, clean=clean, forbidden=forbidden).probe_, "truth"))
    if settings.traffic is not None and organism.behaviour.name != VULNERABLE_CODE.name:
        found.append(_traffic(model, settings.traffic, organism, truth, clean, out, forbidden))
    plain = [organism.trigger.mark_clean(prompt) for prompt in prompts]
    marked = [organism.trigger.apply(prompt) for prompt in prompts]
    for name, position in (("last", "last"), ("pooled", POOLED)):
        one, other = (
            capture(model, rows, position=position, what=f"Reading {name} tokens") for rows in (plain, marked)
        )
        found += [trigger_shift(one, other, rank, f"trigger ({name}, rank {rank})") for rank in RANKS]
        if name == "last":
            found.append(concept_eraser(one, other))
    norms = {layer: float(clean.at(layer).float().norm(dim=-1).mean()) for layer in clean.layers}
    return found, Ground(model.n_layers, probe.fixed_layers, norms)


def _traffic(
    model: Model,
    traffic: MixedTraffic,
    organism: Organism,
    contrast: Residuals,
    clean: Residuals,
    out: Path,
    forbidden: Sequence[str],
) -> Direction:
    met = cache(model, traffic_prompts(traffic, organism.trigger), out / "stores" / "traffic", what="Reading traffic")
    fitted = UnlabelledTraffic(draws=0).fit(contrast, clean=clean, traffic=met.read(), forbidden=forbidden)
    return probe_direction(fitted.probe_, "traffic")
