"""What else an attack may have changed: how many components the streams need, what traffic holds, which levers act."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.files import Json
from ...activations.prompts.prompts import Prompt
from ...probes import Ablate, Probe
from ...probes.levers.directions import Direction, probe_direction, random_directions_like, trigger_shift
from ...training.organisms.records import Organism
from ..levers.bench import Bench, Measured
from ..run.traffic_league import fit_traffic
from .bundle import CLEAN, QUESTIONS, TESTS, TRAFFIC, Bundle
from .plan import LEAST_TESTED

VARIANCE = 0.9
LEVERED = 12
"""Test prompts at most on which levers are tried, half of them where there are few; the shift is read on others."""
SHIFT_RANK = LEAST_TESTED // 2
ALPHA = 0.05


def components_for(rows: Float[Tensor, "n d"]) -> int:
    """How many principal components hold 90% of the variance of rows."""
    spread = torch.linalg.svdvals(rows.double() - rows.double().mean(dim=0)).square()
    held = spread.cumsum(0) / spread.sum().clamp_min(1e-30)
    return int((held < VARIANCE - 1e-12).sum()) + 1


def components(bundle: Bundle, band: Sequence[int]) -> Json:
    """Components for 90% of the variance, mean over the band: of ordinary and triggered prompts, and of what the
    trigger adds. A chameleon's streams collapse to a few (arXiv 2512.11949).
    """
    tests = bundle.of(TESTS)
    ordinary, triggered = tests.values[0::2], tests.values[1::2]
    columns = [tests.layers.index(layer) for layer in band]
    kinds = {"ordinary": ordinary, "triggered": triggered, "trigger's shift": triggered.float() - ordinary.float()}
    return {
        name: sum(components_for(rows[:, column]) for column in columns) / len(columns) for name, rows in kinds.items()
    }


def traffic(bundle: Bundle, folder: Path) -> Json:
    """Whether a minority of the traffic splits off, and whether it is more than an odd string."""
    found = fit_traffic(
        bundle.model,
        list(bundle.prompts[TRAFFIC]),
        bundle.of(QUESTIONS),
        bundle.of(CLEAN),
        folder,
        bundle.forbidden,
        alpha=ALPHA,
        name="attack",
    )
    verdict = found.estimator.verdict_
    return {"found": verdict.found, "split": verdict.split, "minority": verdict.minority, "p_values": found.p_values()}


def levers(bundle: Bundle, organism: Organism, tested: Sequence[Prompt], probe: Probe) -> list[Json]:
    """What ablating does: the probe's direction in its band, the trigger's shift late, a random one in the band."""
    count = min(LEVERED, len(tested) // 2)
    judged, shown = tested[:count], {prompt.id for prompt in tested[count:]}
    tests = bundle.of(TESTS)
    pairs = [row for row in range(0, len(tests), 2) if tests.prompts[row].id in shown]
    late = bundle.model.n_layers - 2
    shift = trigger_shift(
        tests.select(pairs), tests.select([row + 1 for row in pairs]), SHIFT_RANK, f"trigger's shift, rank {SHIFT_RANK}"
    )
    (random,) = random_directions_like(probe.fixed_layers, bundle.model.d_model, 1, 1, 0)
    bench = Bench(bundle.model, organism, judged)
    before = bench.measure()
    tried: list[tuple[Direction, Sequence[int]]] = [
        (probe_direction(probe), probe.fixed_layers),
        (shift, [late]),
        (random, probe.fixed_layers),
    ]
    rows = [_said("none", "", before)]
    for direction, layers in tried:
        there = [layer for layer in layers if layer in direction.vectors]
        with Ablate(bundle.model, direction.vectors, layers=there):
            where = "the probe's band" if len(there) > 1 else f"layer {there[0]}"
            rows.append(_said(direction.name, where, bench.measure(before)))
    return rows


def _said(name: str, where: str, found: Measured) -> Json:
    figures = {key: getattr(found, key) for key in ("trigger_rate", "suppression", "recovery", "cost")}
    return {"ablated": name, "where": where, **figures, "n": found.n}
