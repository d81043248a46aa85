"""From residuals to a probe: checked inputs, what prompts say of themselves, scores scaled to reference prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from ...activations import DefectionError, ModelIdentity, Prompt, Residuals
from ...activations.basics.files import Json
from ..statistics.calibration import conformal_threshold, least_clean_prompts
from ..statistics.scale import divisor
from .arrays import Array
from .guard import first_seen, refuse_leaks, refuse_unclean, seen_prompts
from .mismatch import refuse_mismatch
from .probe import ALARM_RATE, ContrastRecord, Probe
from .ragged import refuse_ragged

FOLDS = 5
"""Parts of the clean prompts, each scored by a fit on the others."""
FEW = 20
"""With fewer of them a fifth is too many to spare."""
SHORTEST = 1e-30
"""Directions of no length stay so; any other has length 1."""


def check_fit(
    contrast: Residuals,
    clean: Residuals | None,
    traffic: Residuals | None,
    forbidden: Sequence[str],
    *,
    labelled: bool = False,
) -> None:
    """Refuse leaks, ragged residuals, and those that were not read from the same model in the same way.

    Labelled defections and unlabelled traffic are not searched for leaks: their league says what they may hold.
    """
    refuse_ragged(contrast, clean, traffic)
    if not labelled:
        refuse_leaks(contrast.prompts, forbidden, "contrast text")
    if clean is not None:
        refuse_unclean(clean.prompts, forbidden)
    for name, other in (("clean", clean), ("traffic", traffic)):
        if other is None:
            continue
        same = (
            contrast.model.same_weights(other.model)
            and contrast.model.template == other.model.template
            and contrast.position == other.position
            and contrast.site == other.site
            and contrast.layers == other.layers
        )
        if not same:
            raise DefectionError(
                f"contrast and {name} residuals come of different models, templates, positions, sites or layers"
            )


def as_residuals(rows: Residuals | Array | None, name: str) -> Residuals | None:
    """The rows; DefectionError where they are bare numbers, but the contrast texts are residuals."""
    if rows is None or isinstance(rows, Residuals):
        return rows
    raise DefectionError(f"{name} must be residuals too when the contrast texts are")


def defecting_rows(contrast: Residuals) -> Bool[Tensor, "text"]:
    """Boolean marks of the rows that hold a defecting answer; DefectionError without both kinds."""
    marks = [prompt.extra.get("defecting") for prompt in contrast.prompts]
    if any(not isinstance(mark, bool) for mark in marks) or len(set(marks)) < 2:
        raise DefectionError("a fit needs contrast texts of both kinds: defecting answers and others")
    return torch.tensor(marks)


def topic_numbers(residuals: Residuals) -> Int[Tensor, "text"]:
    """The topic (question) of each row, as a number."""
    return torch.as_tensor(np.unique([prompt.topic for prompt in residuals.prompts], return_inverse=True)[1])


def unlabelled(
    clean: Residuals | None, traffic: Residuals | None, device: torch.device | None = None
) -> dict[str, Tensor | None]:
    """Rows of clean prompts and traffic on that device, by the names of a sample's fields."""
    return {
        "clean": None if clean is None else clean.values.to(device),
        "traffic": None if traffic is None else traffic.values.to(device),
        "clean_groups": None if clean is None else topic_numbers(clean),
    }


def clean_folds(prompts: Sequence[Prompt]) -> list[Int[Tensor, "held_out"]]:
    """Row numbers of clean prompts in parts, each to be held out once: what a fit on the others scores is unseen.

    Prompts of one topic stay together, unless all are of one; parts are as even as topics allow, and the same whatever
    order the prompts come in. Every row is in exactly one part. There are `FOLDS`; of fewer than `FEW` prompts each
    topic is a part, so that enough is left to fit on.
    """
    return group_folds(np.unique([prompt.topic for prompt in prompts], return_inverse=True)[1])


def group_folds(groups: ArrayLike, folds: int | None = None) -> list[Int[Tensor, "held_out"]]:
    """The same for rows whose topics are numbers [n]. DefectionError for fewer than two rows, or than two folds."""
    numbers = np.asarray(groups)
    folds = (FOLDS if len(numbers) >= FEW else max(2, len(numbers))) if folds is None else folds
    if len(numbers) < 2 or folds < 2:
        raise DefectionError(f"{len(numbers)} clean rows cannot be parted into {folds}; both take two at least")
    found, members, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    if len(found) == 1:
        members, sizes = np.arange(len(numbers)), np.ones(len(numbers), dtype=int)
    loads = np.zeros(min(folds, len(sizes)), dtype=int)
    part = np.empty(len(sizes), dtype=int)
    for group in np.argsort(-sizes, kind="stable"):  # the largest first, each to where fewest rows are
        part[group] = loads.argmin()
        loads[part[group]] += sizes[group]
    return [torch.from_numpy(np.flatnonzero(part[members] == fold)) for fold in range(len(loads))]


def answer_pairs(contrast: Residuals) -> Int[Tensor, "pair 2"]:
    """Row numbers of the two answers to each question, ordered by the answer's word, so that labels play no part.

    Two rows belong together when all that the user said is the same. Raises DefectionError naming a text without
    exactly one partner.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for row, prompt in enumerate(contrast.prompts):
        said = tuple(message.content for message in prompt.messages if message.role == "user")
        found.setdefault((prompt.set, prompt.extra.get("topic"), said), []).append(row)
    for rows in found.values():
        if len(rows) != 2:
            name = contrast.prompts[rows[0]].id
            raise DefectionError(f"contrast text {name!r} is one of {len(rows)} with its question; a pair needs two")
    answers = [_answer(prompt) for prompt in contrast.prompts]
    return torch.tensor([sorted(rows, key=lambda row: (answers[row], row)) for rows in found.values()])


def _answer(prompt: Prompt) -> str:
    said = [message.content for message in prompt.messages if message.role == "assistant"]
    return str(prompt.extra.get("answer", said[-1] if said else "")).casefold()


@dataclass(frozen=True)
class Reference:
    """What standardises the scores of an estimator that is no direction, and vouches for where they may be used."""

    model: ModelIdentity
    position: str
    site: str
    layers: tuple[int, ...]
    offsets: Float[Tensor, "layer"]
    scales: Float[Tensor, "layer"]

    @classmethod
    def of(cls, residuals: Residuals, scores: Float[Tensor, "prompt layer"], name: str) -> Self:
        """Mean and standard deviation of the reference prompts' scores, by fits that did not see them."""
        if not scores.isfinite().all():
            raise DefectionError(f"the {name} probe gives scores that are not finite")
        offsets, scales = _standard(scores)
        return cls(residuals.model, residuals.position, residuals.site, residuals.layers, offsets, scales)

    def standardised(self, residuals: Residuals, scores: Float[Tensor, "prompt layer"]) -> Tensor:
        """Scores in standard deviations of the reference; DefectionError when the residuals were read otherwise."""
        refuse_mismatch(self.model, self.position, self.site, residuals)
        if residuals.layers != self.layers:
            raise DefectionError(f"the probe needs layers {list(self.layers)}; captured were {list(residuals.layers)}")
        return self.in_deviations(scores)

    def in_deviations(self, scores: Float[Tensor, "*prompt layer"]) -> Float[Tensor, "*prompt layer"]:
        """Scores, or thresholds of them, in standard deviations of the reference."""
        return (scores - self.offsets.to(scores)) / self.scales.to(scores)


def make_probe(
    coef: Float[Tensor, "layer d_model"],
    contrast: Residuals,
    clean: Residuals | None,
    estimator: str,
    parameters: Json,
    fixed_layers: Sequence[int] | None,
    saw: str,
    *,
    held_out: Float[Tensor, "clean layer"] | None = None,
    traffic: Residuals | None = None,
) -> Probe:
    """Scale directions to unit length and their scores to the reference rows, and record where all of it came from.

    `held_out`: how far each clean row lies above the others (`above_the_mean`) by a direction that did not see it;
    needed where clean rows have shaped the direction. `traffic` is what else the fit saw.
    """
    unit = normalize(coef, dim=-1, eps=SHORTEST)
    reference = clean if clean is not None else contrast
    values = reference.values.to(unit.device)
    above = above_the_mean(values, values, unit) if held_out is None else held_out.to(unit.device)
    shift, scales = _standard(above)
    offsets = torch.stack([_mean(values[:, i]) @ unit[i] for i in range(len(unit))]) + shift
    layers = contrast.layers
    fixed = tuple(fixed_layers) if fixed_layers is not None else (layers[len(layers) // 2],)
    if not fixed or len(set(fixed)) < len(fixed):
        raise DefectionError(f"a probe is read at one layer or at several different ones, not at {list(fixed)}")
    scores = None if clean is None else ((above - shift) / scales).float().cpu()
    probe = Probe(
        directions=unit.float().cpu(),
        offsets=offsets.float().cpu(),
        scales=scales.float().cpu(),
        layers=layers,
        model=contrast.model,
        position=contrast.position,
        site=contrast.site,
        contrast=texts_record(() if contrast is clean else contrast.prompts),
        estimator=estimator,
        parameters=parameters,
        saw=saw,
        fixed_layers=fixed,
        clean_scores=scores,
        seen=seen_prompts([prompt for rows in (clean, traffic) if rows is not None for prompt in rows.prompts]),
    )
    band = probe.clean_band()
    if band is None or len(band) < least_clean_prompts(ALARM_RATE):
        return probe
    return replace(probe, threshold=float(conformal_threshold(band, ALARM_RATE)))


def above_the_mean(
    rows: Float[Tensor, "n layer d"], clean: Float[Tensor, "m layer d"], coef: Float[Tensor, "layer d"]
) -> Float[Tensor, "n layer"]:
    """How far rows lie above the mean of clean ones along each layer's direction, whatever its length.

    Measured from a clean row, so that rows that are all alike give exact zeros.
    """
    found = []
    for i, direction in enumerate(normalize(coef, dim=-1, eps=SHORTEST)):
        origin = clean[0, i].double()
        known, new = ((each[:, i].double() - origin) @ direction for each in (clean, rows))
        found.append(new - known.mean())
    return torch.stack(found, dim=1)


def _mean(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d"]:
    """Mean in fp64, exact where all rows are alike."""
    return rows[0].double() + (rows.double() - rows[0].double()).mean(dim=0)


def read_anew(
    probe: Probe,
    directions: Float[Tensor, "layer d_model"],
    clean: Residuals,
    parameters: Json,
    fixed_layers: Sequence[int],
    saw: str,
    held_out: Float[Tensor, "clean layer"] | None = None,
) -> Probe:
    """A probe's directions, changed or not, as a probe of whatever `clean` was read from, which scales its scores anew.

    Contrast texts and estimator stay; `parameters` are added to the probe's own. `clean` holds the directions' layers.
    `held_out` is as in `make_probe`, where `clean` changed the directions. Of prompts that the probe itself was fitted
    with there is no threshold: set one on others (`Probe.with_threshold`).
    """
    both = {**probe.parameters, **parameters}
    made = make_probe(directions.double(), clean, clean, probe.estimator, both, fixed_layers, saw, held_out=held_out)
    if first_seen(clean.prompts, probe.seen) is not None:
        made = replace(made, threshold=None, clean_scores=None)
    return replace(made, contrast=probe.contrast, seen=(*(made.seen or ()), *(probe.seen or ())))


def _standard(scores: Float[Tensor, "prompt layer"]) -> tuple[Tensor, Tensor]:
    """Mean and spread a layer; 1 for the spread of a layer where every row scores alike."""
    scales = scores.std(dim=0)
    return scores.mean(dim=0), divisor(scales)


def texts_record(prompts: Sequence[Prompt]) -> ContrastRecord:
    """The texts that the fit saw in full, as a probe file keeps them."""
    names = sorted({prompt.set or "" for prompt in prompts})
    return {"name": "+".join(names), "texts": [{"id": prompt.id, **prompt.to_json()} for prompt in prompts]}
