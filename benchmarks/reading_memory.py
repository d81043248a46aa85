"""The memory that reading takes at its peak, against the weights and one batch's activations, which nobody can avoid.

    python benchmarks/reading_memory.py [--quick]

Each figure is the peak resident memory of this process, by the kernel's own account (Linux), above what it held before
it had a model. What a round has freed is given back before the next. The yardstick is the weights and the bare forward
of the first batch, which is the largest; whatever reading does besides may take no more.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from common import Records, main, spread
from defection.activations import Model, capture
from defection.activations.basics.memory import give_back_memory
from defection.activations.prompts.rendered import tokenize
from reading import bare_forward, model_to_read, prompts_of

DTYPE = "bf16"
KINDS = {"shared": "all layers, system prompt shared", "alone": "all layers", "half": "the first half of the layers"}


def memory(quick: bool) -> Records:
    """Row 4, for the work of rows 1 to 3."""
    product = torch.ones(64, 64, dtype=torch.bfloat16)
    product @ product  # loads the kernels
    before = resident("VmRSS")
    model = model_to_read(DTYPE)
    sum(float(weights.sum()) for weights in model.network.parameters())  # pages of a mapped file count once touched
    records = []
    for kind, what in KINDS.items():
        theirs, ours = works(model, kind, 4 if quick else 16)
        theirs(), ours()
        pairs = [(peak(theirs) - before, peak(ours) - before) for _ in range(2 if quick else 5)]
        records.append(
            {
                "row": 4,
                "name": f"peak memory of reading {what}, {DTYPE}",
                "yardstick": "weights and one batch of the bare forward",
                "at_most": 1.1,
                **spread([b / a for a, b in pairs]),
                "megabytes_theirs": pairs[-1][0] / 1024,
                "megabytes_ours": pairs[-1][1] / 1024,
            }
        )
    return records


def works(model: Model, kind: str, count: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One batch of the bare forward, and our reading of all prompts."""
    prompts = prompts_of("shared" if kind == "shared" else "alone", count)
    ids = tokenize(model.tokenizer, prompts)
    decoder, blocks = model.network.get_decoder(), model.network.get_decoder().layers
    kept = model.n_layers // 2 if kind == "half" else model.n_layers

    def one_batch() -> None:
        decoder.layers = blocks[:kept]
        try:
            bare_forward(model, ids, batches=1)
        finally:
            decoder.layers = blocks

    return one_batch, lambda: capture(model, prompts, layers=slice(0, kept), share_prefixes=kind == "shared")


def peak(work: Callable[[], object]) -> int:
    """Kilobytes of this process at its peak while it does the work."""
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    work()
    return resident("VmHWM")


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


PARTS = {"memory": memory}

if __name__ == "__main__":
    main(PARTS, __doc__)
