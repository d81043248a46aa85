"""Which prompts go through the model together: shared prefixes once, similar lengths side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Ids = Sequence[int]

READING_COST = 60
"""Tokens' worth of time that one more forward pass costs.

A prefix is split off, or a batch cut to save padding, only if that saves more. On a CPU, with a 135M model, 25 to 30
were measured in fp32, 40 to 50 in bf16 and 70 to 90 in bf16 on two threads, whether 20 rows shared 3 tokens or 3 rows
shared 96. Not measured on a GPU, where `PASSES_A_BUDGET` says more.
"""
REPLYING_COST = 600
"""The same where each batch is also decoded from, step by step."""
MAX_ROWS = 64
"""Rows in a small batch: beyond this a forward pass is no faster per token, on CPU at least."""
TOKENS_PER_ROW = 64
"""A larger budget (a GPU's) allows one more row for so many tokens of it."""
PASSES_A_BUDGET = 32
"""A pass costs no less than this part of a batch's budget: a device that wants large batches is slow at small ones."""
KEYS_PER_TOKEN = 16
"""Keys that attention may look at, the shared prefix counted in every row, for each token of the budget."""


@dataclass(frozen=True)
class Batch:
    """Rows of the caller's list that share their first `prefix_length` tokens.

    Rows of equal tokens are always in the same batch, next to each other, and are meant to be computed once.
    """

    rows: tuple[int, ...]
    prefix_length: int
    """Tokens to compute once for all the rows (0: nothing is shared). Every row is longer than this."""


def plan_batches(
    ids: Sequence[Ids],
    *,
    max_tokens: int = 2048,
    share_prefixes: bool = True,
    group_cost: int = READING_COST,
    carry: bool = False,
) -> list[Batch]:
    """Cover every row once, in batches of at most `max_tokens` padded tokens (one row at least).

    With `carry` the longest of the rows that share a prefix comes first and alone: computed whole, it leaves the prefix
    for the others, which then costs no pass of its own, and padding is less by the row that is padded to the most.
    Rows of equal tokens count once. The plan depends on the token ids and the budget alone, so the same prompts
    always meet in the same batches: in bf16 the same prompt differs slightly from batch to batch, and a
    resumed run must not.
    """
    copies: dict[tuple[int, ...], list[int]] = {}
    for row, tokens in enumerate(ids):
        copies.setdefault(tuple(tokens), []).append(row)
    distinct = list(copies)
    order = sorted(range(len(distinct)), key=lambda row: distinct[row])
    cost = max(group_cost, max_tokens // PASSES_A_BUDGET)
    groups = _prefix_groups(distinct, order, cost) if share_prefixes else [(0, order)]
    return [
        Batch(tuple(copy for row in chunk for copy in copies[distinct[row]]), prefix_length)
        for prefix_length, rows in groups
        for chunk in _chunks(distinct, rows, prefix_length, max_tokens, cost, carry=carry and prefix_length > 0)
    ]


def _chunks(
    ids: Sequence[Ids], rows: Sequence[int], prefix: int, max_tokens: int, cost: int, *, carry: bool
) -> Iterator[tuple[int, ...]]:
    if carry:
        first = max(rows, key=lambda row: (len(ids[row]), -row))
        yield (first,)
        rows = [row for row in rows if row != first]
    yield from _by_length(ids, rows, prefix, max_tokens, cost)


def _by_length(
    ids: Sequence[Ids], rows: Sequence[int], prefix: int, max_tokens: int, cost: int
) -> Iterator[tuple[int, ...]]:
    """Cut the rows, longest first, where padding and passes together cost least (found by dynamic programming)."""
    ordered = sorted(rows, key=lambda row: (-len(ids[row]), row))  # the first batch is then the largest, or nearly
    lengths = np.array([len(ids[row]) for row in ordered], dtype=np.int64)
    most = max(MAX_ROWS, max_tokens // TOKENS_PER_ROW)
    least = np.zeros(len(ordered) + 1, dtype=np.int64)  # the cost of the first so many rows
    begins = np.zeros(len(ordered) + 1, dtype=np.int64)  # where the last batch of those begins
    for end in range(1, len(ordered) + 1):
        first = np.arange(max(0, end - most), end)
        count, longest = end - first, lengths[first]
        fits = (count * (longest - prefix) <= max_tokens) & (count * longest <= KEYS_PER_TOKEN * max_tokens)
        total = np.where(fits | (count == 1), least[first] + count * (longest - prefix) + cost, np.iinfo(np.int64).max)
        least[end], begins[end] = total.min(), first[total.argmin()]
    edges = [len(ordered)]
    while edges[-1]:
        edges.append(int(begins[edges[-1]]))
    yield from (tuple(ordered[start:end]) for start, end in pairwise(reversed(edges)))


def _prefix_groups(ids: Sequence[Ids], order: Sequence[int], group_cost: int) -> list[tuple[int, list[int]]]:
    """Split lexicographically sorted rows into groups with a common prefix, saving as many tokens as possible.

    Rows sorted by their tokens form a tree of shared prefixes. At each node either its rows stay together and share
    what they have in common, or they part at the next token; the better is chosen from the leaves up. An explicit
    stack keeps deep trees (many near-identical long prompts) from overflowing Python's.
    """
    common = [shared_prefix(ids[a], ids[b]) for a, b in pairwise(order)]
    best: dict[tuple[int, int], tuple[int, list[tuple[int, int, int]]]] = {}
    stack = [(0, len(order), False)] if order else []
    while stack:
        start, end, visited = stack.pop()
        shared = min(common[start : end - 1], default=0)
        cuts = [i + 1 for i in range(start, end - 1) if common[i] <= shared]
        edges = [start, *cuts, end]
        parts = list(pairwise(edges))
        together = max(0, (end - start - 1) * shared - group_cost)
        if len(parts) == 1:  # one row
            best[start, end] = (together, [(start, end, shared if together else 0)])
        elif not visited:
            stack += [(start, end, True), *((a, b, False) for a, b in parts)]
        else:
            apart = sum(best[part][0] for part in parts)
            pieces = [piece for part in parts for piece in best[part][1]]
            if together >= apart:
                pieces = [(start, end, shared if together else 0)]
            best[start, end] = (max(together, apart), pieces)
    pieces = best[0, len(order)][1] if order else []
    return _merge_unshared([(shared, list(order[a:b])) for a, b, shared in pieces])


def _merge_unshared(groups: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    """Rows that share nothing worth computing apart can still be batched with one another."""
    alone = [row for shared, rows in groups if shared == 0 for row in rows]
    return [group for group in groups if group[0] > 0] + ([(0, alone)] if alone else [])


def shared_prefix(a: Ids, b: Ids) -> int:
    """How many tokens two rows begin with in common and may share: every row must run at least its last one."""
    limit = min(len(a), len(b)) - 1
    return next((i for i in range(limit) if a[i] != b[i]), limit)


def shared_by_all(ids: Sequence[Ids]) -> int:
    """How many tokens all rows begin with in common and may share."""
    if not ids:
        return 0
    return min(shared_prefix(min(map(tuple, ids)), max(map(tuple, ids))), min(map(len, ids)) - 1)


def of_one_length(ids: Sequence[Ids], rows: int) -> Iterator[list[int]]:
    """Numbers of rows that are equally long, so many at most at a time: nothing is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, tokens in enumerate(ids):
        by_length[len(tokens)].append(row)
    for alike in by_length.values():
        for start in range(0, len(alike), rows):
            yield alike[start : start + rows]
