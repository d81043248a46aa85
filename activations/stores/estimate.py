"""What a reading will cost before it starts: tokens, bytes on disk, and time, from a short measured forward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ..basics.errors import DefectionError
from ..basics.files import Json
from ..models.hardware import choose_dtype
from ..models.model import Model
from ..models.wrap import ModelLike, as_model
from ..prompts.loading import PromptsLike
from ..prompts.rendered import rendered
from ..reading.batching import Batch
from ..reading.forward import LastPrefix, Reading, automatic_batch_tokens, distinct_rows, plan_reading, read_batch
from ..reading.selection import Selection, select
from .plan import shard_rows

MEASURED_SECONDS = 2.0
"""For how long batches are measured before the rest is extrapolated."""


@dataclass(frozen=True)
class Estimate:
    """The cost of reading some prompts into a store.

    Examples:
        >>> estimate(model, prompts, Reading((0,)), measured_seconds=0).vectors
        4
    """

    prompts: int
    """To be read."""
    tokens: int
    """Of all rendered prompts."""
    computed_tokens: int
    """Those that go through the model: shared prefixes and equal prompts once, padding included."""
    batches: int
    """Forward passes, shared prefixes' among them."""
    max_tokens: int
    """The budget of a batch."""
    vectors: int
    """Rows that the store will hold, each with all layers: one a prompt, or one a token if the rule gives several."""
    bytes: int
    """Of the vectors on disk; the manifest and the shards' headers add less than a thousandth."""
    tokens_per_second: float
    """Computed tokens, on one device, as measured."""
    devices: int
    """Processes or GPUs that share the work."""
    seconds: float
    """On each of the devices, at that speed."""

    def to_json(self) -> Json:
        """The same as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        saved = 1 - self.computed_tokens / self.tokens if self.tokens else 0.0
        return (
            f"{self.prompts:,} prompts, {self.tokens:,} tokens; {self.computed_tokens:,} go through the model "
            f"({saved:+.0%} saved by what prompts share, padding counted) in {self.batches:,} batches of up to "
            f"{self.max_tokens:,}\n"
            f"{self.vectors:,} vectors, {_spelled(self.bytes, 1000, ('B', 'kB', 'MB', 'GB', 'TB'))} on disk\n"
            f"{self.tokens_per_second:,.0f} tokens a second measured here; on {self.devices} such "
            f"device{'s' if self.devices > 1 else ''} about {_duration(self.seconds)}"
        )


def estimate(
    model: ModelLike,
    prompts: PromptsLike,
    reading: Reading,
    *,
    dtype: str | torch.dtype | None = None,
    max_tokens: int | None = None,
    rows_per_shard: int | None = None,
    devices: int = 1,
    measured_seconds: float = MEASURED_SECONDS,
) -> Estimate:
    """Plan the reading as a store would, run a few of its batches, and scale their speed to all of them.

    Args:
        model: A `Model`, or a Hugging Face model and its tokenizer in a pair.
        prompts: Whatever `load_prompts` takes.
        reading: Layers, site and position.
        dtype: Of the file, `fp32` or `bf16`; by default the one the model computes in.
        max_tokens: Padded tokens of a batch at most; by default the device's memory decides.
        rows_per_shard: Prompts a shard, by default as `cache` would have it; nothing is shared across shards.
        devices: How many like this one share the work.
        measured_seconds: For how long batches are measured; 0 measures one alone.

    Raises:
        DefectionError: As `capture` does for a prompt that is too long or to which the position does not apply, and for
            fewer than one device.

    Examples:
        >>> estimate(model, prompts, Reading((0, 3)), measured_seconds=0).bytes
        1024
    """
    if devices < 1:
        raise DefectionError(f"an estimate for {devices} devices makes no sense; give at least 1")
    model = as_model(model)
    rows = rendered(model, prompts)
    selection = select(reading, rows)
    budget = max_tokens or automatic_batch_tokens(model, reading)
    n_tokens, vectors = [len(row.ids) for row in rows], sum(selection.counts)
    vector_bytes = (
        len(reading.layers) * model.d_model * (model.dtype if dtype is None else choose_dtype(dtype)).itemsize
    )
    shards = _plan(model, selection, budget, rows_per_shard or shard_rows(selection.counts, n_tokens, vector_bytes))
    batches = [batch for shard in shards for batch in shard]
    computed = sum(sum(computed_tokens(selection.ids, shard)) for shard in shards)
    speed = _speed(model, selection, batches, measured_seconds)
    return Estimate(
        prompts=len(rows),
        tokens=sum(n_tokens),
        computed_tokens=computed,
        batches=len(batches),
        max_tokens=budget,
        vectors=vectors,
        bytes=vectors * vector_bytes,
        tokens_per_second=speed,
        devices=devices,
        seconds=computed / speed / devices if speed else 0.0,
    )


def _plan(model: Model, selection: Selection, budget: int, rows_per_shard: int) -> list[list[Batch]]:
    """The batches of each shard, numbered by all rows."""
    shards = []
    for start in range(0, len(selection.ids), rows_per_shard):
        planned = plan_reading(model, selection.ids[start : start + rows_per_shard], budget)
        shards.append([Batch(tuple(start + row for row in b.rows), b.prefix_length) for b in planned])
    return shards


def computed_tokens(ids: Sequence[Sequence[int]], batches: Sequence[Batch]) -> list[int]:
    """The tokens each batch sends through the model, padding included; a prefix counts where it is first computed."""
    costs = []
    before: tuple[int, ...] = ()
    for batch in batches:
        firsts, _ = distinct_rows(ids, batch.rows)
        prefix = tuple(ids[firsts[0]][: batch.prefix_length])
        width = max(len(ids[row]) for row in firsts) - batch.prefix_length
        costs.append(len(firsts) * width + (len(prefix) if prefix != before else 0))
        before = prefix or before
    return costs


def _speed(model: Model, selection: Selection, batches: Sequence[Batch], measured_seconds: float) -> float:
    """Tokens a second over batches taken evenly from the plan, after one that is not timed."""
    if not batches:
        return 0.0
    # By the golden ratio: even wherever it stops.
    spread = [batches[i] for i in sorted(range(len(batches)), key=lambda i: (i * 0.6180339887) % 1)]
    _timed(model, selection, spread[0])
    tokens, spent = 0, 0.0
    for batch in spread:
        spent += _timed(model, selection, batch)
        tokens += sum(computed_tokens(selection.ids, [batch]))
        if spent > measured_seconds:
            break
    return tokens / spent


def _timed(model: Model, selection: Selection, batch: Batch) -> float:
    start = time.perf_counter()
    read_batch(model, selection.ids, batch, selection.reading, selection.wanted, LastPrefix()).cpu()  # waits for it
    return time.perf_counter() - start


def _spelled(amount: float, step: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if amount < step:
            return f"{amount:.3g} {unit}"
        amount /= step
    return f"{amount:.3g} {units[-1]}"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
