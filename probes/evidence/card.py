"""A probe's card: what it claims, what chance does, and what its claim rests on, for whoever is handed the probe.

The fields are those of OpenInterp's `probe_card.json`, version 0.1, whose three baselines are asked here of the very
figure that the card tells, the mean AUROC over test sets: a random direction, shuffled labels, and less capacity.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Residuals
from ...activations.basics.files import Json
from ..estimators.linear import LinearProbe
from ..estimators.probe import Probe
from ..statistics.scale import divisor
from .judging import questions_at, trial_of
from .nulls import null_band, p_value
from .outcomes import Outcomes
from .randomisation import Trial, mean_auroc, question_null, turned_null

CARD_SCHEMA = "0.1"
DRAWS = 1000
ALPHA = 0.05
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc0")
"""Those that the format knows."""
ASSUMPTIONS = (
    "the residual stream itself, before any norm, at the site and position named",
    "the chat template and the weights of model_target, by the fingerprints in the probe file",
    "prompts of the kind that set scale and alarm",
)


@dataclass(frozen=True)
class Grounds:
    """What a card's figures are measured on."""

    tests: Residuals
    clean: Residuals
    outcomes: Outcomes
    contrast: Residuals | None = None
    """The questions that the probe was fitted on; None: labels cannot be shuffled, and the card says so."""
    estimator: LinearProbe | None = None
    """The kind that made the direction of them."""


@dataclass(frozen=True)
class About:
    """What nobody can measure."""

    name: str
    author: str = ""
    license: str = "apache-2.0"
    created_at: str = ""
    """A time as RFC 3339 has it; empty: it is left out."""
    failures: Sequence[str] = field(default_factory=tuple)
    """Known failures, a sentence each."""

    def __post_init__(self) -> None:
        if self.license not in LICENSES:
            raise DefectionError(f"unknown licence {self.license!r}: a card takes one of {', '.join(LICENSES)}")
        if not re.search(r"\w", self.name):
            raise DefectionError("a card needs a name; give it one (--name)")


def probe_card(probe: Probe, grounds: Grounds, about: About) -> Json:
    """The card as JSON; DefectionError for a test set on which only one outcome occurs, or another model's residuals.

    Args:
        probe: at its fixed layers, whose mean score the card is about.
        grounds: test prompts with what the model did on them, clean prompts, and the probe's own questions.
        about: name, author, licence.
    """
    fixed = probe.at(probe.fixed_layers)
    scores = fixed.score(grounds.tests)
    area, (low, high) = grounds.outcomes.mean(scores)
    trial = trial_of(fixed, grounds.tests, grounds.clean, grounds.outcomes)
    marks = grounds.outcomes.labels
    share = float(marks.mean())
    card: Json = {
        "schema_version": CARD_SCHEMA,
        "probe_id": re.sub(r"[^a-z0-9]+", "-", about.name.lower()).strip("-"),
        "name": about.name,
        "author": about.author or None,
        "model_target": {
            "model_id": probe.model.name,
            "layer": probe.fixed_layers[len(probe.fixed_layers) // 2],
            "layers": list(probe.fixed_layers),
            "position": probe.position,
            "site": probe.site,
            "d_in": probe.directions.shape[1],
            "fingerprint": probe.model.fingerprint,
        },
        "task": {
            "target_concept": "defection: whether the model's own reply shows the behaviour",
            "task_type": "binary_classification",
            "label_source": "automated: what the model replied to the same prompt",
        },
        "training": {
            "n_train": max(1, len(probe.contrast.get("texts", ()))),
            "n_test": len(marks),
            "class_balance": {"defected": share, "ordinary": 1 - share},
            "splits": f"fitted on {probe.saw}; read on {', '.join(dict.fromkeys(grounds.outcomes.families))}",
            "regularization": f"{probe.estimator} {probe.parameters}",
        },
        "performance": {
            "auroc": area,
            "auroc_ci_95": [low, high],
            "n_eval": len(marks),
            "eval_distribution": "cross-domain",
        },
        "baselines": {
            "random_feature": _against(area, turned_null(trial, fixed.directions, draws=DRAWS)),
            "capacity_sweep": _capacity(trial, fixed, (low, high)),
            "shuffled_source": _shuffled(trial, fixed, grounds),
        },
        "assumptions": list(ASSUMPTIONS),
        "known_failure_modes": [{"mode": "other", "description": said} for said in about.failures],
        "license": about.license,
        "created_at": about.created_at or None,
    }
    return {key: value for key, value in card.items() if value is not None}


def _shuffled(trial: Trial, probe: Probe, grounds: Grounds) -> Json:
    """The same questions with the labels of their answers dealt anew."""
    if grounds.contrast is None or grounds.estimator is None:
        return {"note": "not asked: the texts of the fit are not at hand"}
    own = questions_at(grounds.estimator, grounds.contrast, grounds.clean, probe.layers)
    if own is None or not own.can_be_shuffled:
        return {"note": f"not asked: the labels of a {probe.estimator} probe's questions cannot be dealt anew"}
    area = float(question_null(trial, own.effects, own.weights(own.signs[None]))[0])
    return _against(area, question_null(trial, own.effects, own.weights(own.shuffled(DRAWS, seed=0))))


def _against(area: float, null: Float[Tensor, "draw"]) -> Json:
    p = float(p_value(area, null))
    mean = float(null.mean())
    band = list(null_band(null))
    return {"passed": p <= ALPHA, "auroc": mean, "gap": area - mean, "p_value": p, "band_95": band, "draws": len(null)}


def _capacity(trial: Trial, probe: Probe, interval: tuple[float, float]) -> Json:
    """With only the K coordinates left that move scores most: does a probe of half the size already do what it does?"""
    width = probe.directions.shape[1]
    sizes = sorted({width, width // 2, *(2**power for power in range(width.bit_length()) if 2**power <= width)})
    areas = capacity_aurocs(trial, probe, sizes)
    half = areas[sizes.index(max(1, width // 2))]
    return {
        "passed": interval[0] <= half <= interval[1],
        "values_tested": sizes,
        "auroc_at_k": {str(size): area for size, area in zip(sizes, areas, strict=True)},
        "note": "K coordinates of the direction, those that move the scores of clean prompts most",
    }


def capacity_aurocs(trial: Trial, probe: Probe, sizes: Sequence[int]) -> list[float]:
    """Mean AUROC of the probe with that many of its coordinates, the largest on clean prompts, at each layer."""
    spread = trial.clean.float().std(dim=0)
    order = (probe.directions.to(spread).abs() * spread).argsort(dim=-1, descending=True)
    whole = _projected(trial.clean, probe.directions).std(dim=0)
    found = []
    for size in sizes:
        kept = torch.zeros_like(probe.directions).scatter(1, order[:, :size].cpu(), 1.0) * probe.directions
        scale = (
            _projected(trial.clean, kept).std(dim=0) * probe.scales.to(whole) / whole
        )  # a layer's, as the probe's is
        scores = (_projected(trial.tests, kept) / divisor(scale)).mean(dim=1)
        found.append(float(mean_auroc(scores, trial.labels, trial.families)))
    return found


def _projected(rows: Float[Tensor, "n layer d"], directions: Float[Tensor, "layer d"]) -> Float[Tensor, "n layer"]:
    return torch.einsum("nld,ld->nl", rows.double(), directions.to(rows.device).double())


def readme(card: Json) -> str:
    """The card as a page of the hub, in words."""
    target, performance, baselines = card["model_target"], card["performance"], card["baselines"]
    low, high = performance["auroc_ci_95"]
    rows = "\n".join(f"| {name} | {_outcome(baselines[key])} |" for key, name in NAMES.items())
    failures = "\n".join(f"- {each['description']}" for each in card["known_failure_modes"]) or "- none recorded"
    return f"""---
license: {card["license"]}
library_name: defection-probes
tags: [linear-probe, alignment-research]
---

# {card["name"]}

A linear probe of `{target["model_id"]}`, layers {target["layers"]}, position `{target["position"]}`: it scores a prompt
by how likely the model's reply shows the behaviour, before the reply's first word. It refuses any other model.

**AUROC {performance["auroc"]:.3f}** (95% {low:.3f}–{high:.3f}), mean over test sets, {performance["n_eval"]} prompts.

| what knows nothing | |
|---|---|
{rows}

```python
from defection.activations import load_model
from defection.probes import load_probe

model, probe = load_model("{target["model_id"]}"), load_probe("USER/NAME")
scores = probe.score(probe.read(model, ["a prompt", "another"]))
```

Known failures:

{failures}

All figures are in `probe_card.json`. A probe tells nothing of prompts unlike those that it was read on.
"""


NAMES = {
    "random_feature": "a random direction",
    "shuffled_source": "shuffled labels",
    "capacity_sweep": "fewer coordinates",
}


def _outcome(found: Json) -> str:
    if "p_value" in found:
        return f"AUROC {found['auroc']:.3f} on average; as well in {found['p_value']:.1%} of draws"
    if "auroc_at_k" in found:
        sizes = sorted(map(int, found["auroc_at_k"]))
        told = [f"{found['auroc_at_k'][str(size)]:.3f} with {size}" for size in (sizes[0], sizes[-2], sizes[-1])]
        return f"AUROC {', '.join(told)} coordinates"
    return str(found["note"])
