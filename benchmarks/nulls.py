"""AUROC of random directions and bootstrap draws at every layer, against a loop over `sklearn.metrics.roc_auc_score`.

Prints one JSON object. Both sides run on one thread, which is all that scikit-learn's loop can use. Scores are given
to both; projecting the residuals is not timed. scikit-learn's loop runs over a fraction of the rows, evenly spread, and
its time is scaled up to all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import numpy as np
import torch
from defection.probes.metrics import auroc, bootstrap_aurocs
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


def main() -> None:
    """Check that both give the same values, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.01, help="share of scikit-learn's calls that is run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nulls, probe, marks, topics = make_scores()
    flat = nulls.view(-1, PROMPTS).numpy()
    draws = drawn_rows(topics)
    step = round(1 / options.fraction)
    null_rows = list(range(0, len(flat), step + 1))  # rounded directions and others
    pairs = [(layer, draw) for layer in range(LAYERS) for draw in range(DRAWS)][::step]

    def ours_nulls() -> torch.Tensor:
        return auroc(nulls, marks)

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
        raise SystemExit(f"values differ from scikit-learn's by {max(null_error, draw_error)}")

    def timed(work: object) -> float:
        start = time.perf_counter()
        work()  # type: ignore[operator]
        return time.perf_counter() - start

    kinds = {
        "null": (ours_nulls, sklearn_nulls, len(flat) / len(null_rows)),
        "bootstrap": (ours_draws, sklearn_draws, LAYERS * DRAWS / len(pairs)),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, (ours, sklearns, scale) in kinds.items():
            seconds[name].append((timed(ours), timed(sklearns) * scale))
    together = [(n[0] + b[0], n[1] + b[1]) for n, b in zip(seconds["null"], seconds["bootstrap"], strict=True)]
    report = {
        "row": 7,
        "work": f"AUROC of {DIRECTIONS} random directions x {LAYERS} layers x {PROMPTS} prompts (a tenth with ties), "
        f"plus {DRAWS} bootstrap draws of {TOPICS} topics at each layer",
        "yardstick": f"loop over sklearn.metrics.roc_auc_score, {options.fraction:.1%} of its calls run and scaled up",
        "largest_difference": {"null": float(null_error), "bootstrap": float(draw_error)},
        "rounds": options.rounds,
        "ours_seconds": {name: statistics.median(a for a, _ in each) for name, each in seconds.items()},
        "sklearn_seconds": {name: statistics.median(b for _, b in each) for name, each in seconds.items()},
        "ratio_by_part": {name: statistics.median(b / a for a, b in each) for name, each in seconds.items()},
        "ratio": statistics.median(b / a for a, b in together),
        "aim": 100,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
