"""AUROC of random directions and bootstrap draws at every layer, against a loop over `sklearn.metrics.roc_auc_score`.

Both sides run on one thread, which is all that scikit-learn's loop can use. Scores are given
to both; projecting the residuals is not timed. scikit-learn's loop runs over a fraction of the rows, evenly spread, and
its time is scaled up to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from common import Records, main, medians, spread
from defection.probes.statistics.metrics import auroc, bootstrap_aurocs
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

LAYERS, DIRECTIONS, PROMPTS, TOPICS, DRAWS = 30, 1000, 1000, 100, 1000


def make_scores(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_], list[str]]:
    """Scores of random directions [layer, direction, prompt], of one probe [layer, prompt], labels, topics.

    One direction in ten is rounded, so that ties are part of the work and of the check.
    """
    generator = torch.Generator().manual_seed(seed)
    marks = np.arange(PROMPTS) % 2 == 0
    nulls = torch.randn(LAYERS, DIRECTIONS, PROMPTS, generator=generator)
    nulls[:, ::10] = (nulls[:, ::10] * 50).round() / 50
    probe = torch.randn(LAYERS, PROMPTS, generator=generator) + torch.from_numpy(marks).float()
    return nulls, probe, marks, [f"topic-{i // (PROMPTS // TOPICS)}" for i in range(PROMPTS)]


def drawn_rows(topics: list[str]) -> list[NDArray[np.int64]]:
    """The prompts of each bootstrap draw, repeated as often as `bootstrap_aurocs` counts them."""
    names, member = np.unique(topics, return_inverse=True)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return [np.repeat(np.arange(len(topics)), count[member]) for count in counts]


def theirs(scores: NDArray[np.float32], marks: NDArray[np.bool_]) -> float:
    return float(roc_auc_score(marks, scores))


def nulls_and_draws(quick: bool) -> Records:
    """Row 7: each part, and both together."""
    rounds, step = (2, 1000) if quick else (5, 100)
    torch.set_num_threads(1)
    nulls, probe, marks, topics = make_scores()
    flat = nulls.view(-1, PROMPTS).numpy()
    draws = drawn_rows(topics)
    null_rows = list(range(0, len(flat), step + 1))  # rounded directions and others
    pairs = [(layer, draw) for layer in range(LAYERS) for draw in range(DRAWS)][::step]

    def ours_nulls() -> torch.Tensor:
        return auroc(nulls, marks, axis=-1)

    def ours_draws() -> torch.Tensor:
        return bootstrap_aurocs(probe, marks, topics, draws=DRAWS)

    def sklearn_nulls() -> list[float]:
        return [theirs(flat[row], marks) for row in null_rows]

    def sklearn_draws() -> list[float]:
        return [theirs(probe[layer].numpy()[draws[draw]], marks[draws[draw]]) for layer, draw in pairs]

    null_error = np.abs(ours_nulls().flatten()[null_rows].numpy() - sklearn_nulls()).max()
    found = ours_draws()
    draw_error = np.abs(np.array([found[pair] for pair in pairs]) - sklearn_draws()).max()
    if max(null_error, draw_error) > 1e-9:
        raise SystemExit(f"values differ from scikit-learn's by {max(null_error, draw_error)}: nothing is timed")

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    null_pairs, draw_pairs = [], []
    for _ in range(rounds):
        null_pairs.append((timed(sklearn_nulls) * len(flat) / len(null_rows), timed(ours_nulls)))
        draw_pairs.append((timed(sklearn_draws) * LAYERS * DRAWS / len(pairs), timed(ours_draws)))
    both = [(n[0] + d[0], n[1] + d[1]) for n, d in zip(null_pairs, draw_pairs, strict=True)]
    name = {
        "both": f"AUROC, {DIRECTIONS} random directions and {DRAWS} bootstrap draws",
        "nulls": f"AUROC, {DIRECTIONS} random directions",
        "draws": f"AUROC, {DRAWS} bootstrap draws of {TOPICS} topics",
    }
    return [
        {
            "row": 7,
            "name": f"{name[part]}, {LAYERS} layers, {PROMPTS} prompts",
            "yardstick": f"loop over sklearn.metrics.roc_auc_score, {1 / step:.1%} of its calls run and scaled up",
            **({"at_least": 100.0} if part == "both" else {}),
            "difference": float(max(null_error, draw_error)),
            "threads": torch.get_num_threads(),
            **spread([a / b for a, b in seconds]),
            **medians(seconds),
        }
        for part, seconds in (("both", both), ("nulls", null_pairs), ("draws", draw_pairs))
    ]


PARTS = {"nulls": nulls_and_draws}

if __name__ == "__main__":
    main(PARTS, __doc__)
