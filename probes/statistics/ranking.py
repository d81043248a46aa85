"""Counting how often positives outrank negatives: what AUROC, its intervals and its nulls are made of.

Scores may lie on any device. They are few beside the rows they were read from: ranks are taken on the host, but for the
wins of a GPU's own scores, and whatever is counted, labels among it, lies on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ...activations.basics.errors import DefectionError

NARROW = (torch.float32, torch.bfloat16, torch.float16)
"""Types that fit into a float of 32 bits."""
CHUNK = 1 << 16
"""Scores sorted at a time, so that a chunk stays in the processor's cache."""
PAIRS = 1 << 24
"""Pairs of a positive and a negative compared at a time: bounds memory to some tens of megabytes."""

Labels = Sequence[bool] | Bool[Tensor, "n"] | NDArray[np.generic]
"""[n] whether each row defected."""


def class_marks(labels: Labels, n_scores: int) -> Bool[Tensor, "n"]:
    """Labels as a boolean tensor on the host; DefectionError when they do not fit the scores or hold one class only."""
    marks = torch.as_tensor(np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels), dtype=torch.bool)
    if n_scores != len(marks):
        raise DefectionError(f"{n_scores} scores do not fit {len(marks)} labels")
    if marks.all() or not marks.any():
        raise DefectionError(
            f"AUROC needs both outcomes, but all {len(marks)} labels are {bool(marks[0]) if len(marks) else 'missing'}"
        )
    return marks


def refuse_unranked(scores: Tensor) -> None:
    """DefectionError when a score is not finite."""
    if not scores.isfinite().all():
        raise DefectionError("a score is not finite, so it has no rank")


def split_classes(
    scores: Float[Tensor, "*batch n"], labels: Labels
) -> tuple[Float[Tensor, "*batch positive"], Float[Tensor, "*batch negative"]]:
    """Scores of positives and of negatives, fp64, on the host.

    Raises DefectionError for one class only or a non-finite score.
    """
    marks = class_marks(labels, scores.shape[-1])
    values = scores.cpu().double()
    refuse_unranked(values)
    return values[..., marks], values[..., ~marks]


def count_wins(scores: Float[Tensor, "*batch n"], marks: Bool[Tensor, "n"]) -> Float[Tensor, "*batch"]:
    """Pairs in which the positive scores above the negative, a tie counting ½; exact, fp64, on the host.

    Raises DefectionError for a score that is not finite.
    """
    if scores.dtype in NARROW and not scores.is_cuda:
        return _wins_by_sort(scores, marks)
    refuse_unranked(scores)
    own = marks.to(scores.device)
    return _wins_by_search(scores[..., own], scores[..., ~own]).cpu()


def below(scores: Float[Tensor, "*batch n"], others: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
    """How many of the others lie below each score, a tie counting ½."""
    ranked, wanted = others.sort(dim=-1).values.contiguous(), scores.contiguous()
    less, up_to = (torch.searchsorted(ranked, wanted, side=side) for side in ("left", "right"))
    return (less + up_to).double() / 2


def _wins_by_search(
    positive: Float[Tensor, "*batch positive"], negative: Float[Tensor, "*batch negative"]
) -> Float[Tensor, "*batch"]:
    return below(positive, negative).sum(dim=-1)


def _wins_by_sort(scores: Float[Tensor, "*batch n"], marks: Bool[Tensor, "n"]) -> Float[Tensor, "*batch"]:
    """One plain sort of each row. A float of 32 bits leaves the low bits of a float of 64 free: the label rides there.

    A sort of bare numbers is several times faster than one that also returns where each came from.
    """
    rows = scores.detach().float().reshape(-1, scores.shape[-1]).numpy()
    label = marks.numpy().astype(np.int64)
    wins = np.empty(len(rows))

    def count(start: int) -> None:
        chunk = rows[start : start + step]
        once, tied = _sorted_wins(chunk, label)
        if tied.any():  # with the labels' bits turned, each tie falls the other way: the mean counts it ½
            other, _ = _sorted_wins(chunk[tied], 1 - label)
            once[tied] = (once[tied] + label.sum() * (1 - label).sum() - other) / 2
        wins[start : start + step] = once

    step = max(1, CHUNK // max(1, rows.shape[1]))
    starts = range(0, len(rows), step)
    if len(starts) == 1:  # a thread costs more than it brings
        count(0)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # NumPy sorts outside of the interpreter's lock
            list(pool.map(count, starts))
    return torch.from_numpy(wins).reshape(scores.shape[:-1])


def _sorted_wins(rows: NDArray[np.float32], label: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Wins of each row with ties broken by the sign of the score, and whether a row has a tie between the classes."""
    keys = np.add(rows, 0.0, dtype=np.float64)  # −0 becomes 0: they tie
    bits = keys.view(np.int64)
    bits |= label
    keys.sort(axis=-1)
    refuse_unranked(torch.from_numpy(keys[:, [0, -1]]))  # infinities lie at the ends, and NaN at the last
    n = rows.shape[1]
    tied = ((bits[:, 1:] ^ bits[:, :-1]) == 1).any(axis=-1)
    positives = int(label.sum())
    wins = (bits & 1).astype(np.float64) @ np.arange(n, dtype=np.float64) - positives * (positives - 1) / 2
    return wins, tied


def cluster_wins(
    positive: Float[Tensor, "*batch positive"],
    negative: Float[Tensor, "*batch negative"],
    of_positive: Int[Tensor, "positive"],
    of_negative: Int[Tensor, "negative"],
) -> Float[Tensor, "*batch cluster_up cluster_down"]:
    """Wins of one cluster's positives over another's negatives, fp64; clusters are numbered from 0 in each class."""
    shape = (int(of_positive.max()) + 1, int(of_negative.max()) + 1)
    ups = positive.reshape(-1, positive.shape[-1])
    downs = negative.reshape(-1, negative.shape[-1])
    found = torch.zeros(len(ups), *shape, dtype=torch.float64)
    step = max(1, PAIRS // downs.shape[1])
    for row in range(len(ups)):
        for start in range(0, ups.shape[1], step):
            part = slice(start, start + step)
            one, other = ups[row, part, None], downs[row, None, :]
            twice = (one > other).float() + (one >= other).float()  # a tie counts once in two
            by_up = torch.zeros(shape[0], downs.shape[1]).index_add_(0, of_positive[part], twice)
            found[row].index_add_(1, of_negative, by_up.double() / 2)
    return found.reshape(*positive.shape[:-1], *shape)


def placements(
    positive: Float[Tensor, "*batch positive"], negative: Float[Tensor, "*batch negative"]
) -> tuple[Float[Tensor, "*batch positive"], Float[Tensor, "*batch negative"]]:
    """Each positive's share of negatives below it, and each negative's share of positives above it, ties ½.

    DeLong's structural components V₁₀ and V₀₁ by sorting, as Sun and Xu (2014) do, not by all pairs.
    """
    above = below(positive, negative) / negative.shape[-1]
    return above, 1 - below(negative, positive) / positive.shape[-1]
