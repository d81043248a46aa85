"""The memory that reading takes at its peak, against the weights and one batch's activations, which nobody can avoid.

    python benchmarks/reading_memory.py [--quick]

Each figure is the peak resident memory of a fresh process above what it held before it had a model, by the kernel's
own account (Linux). The yardstick is the weights and the bare forward of the largest batch; what it leaves behind is
nothing, so all the rest of a reading's time may take no more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Records, main, spread

KINDS = {"shared": "all", "alone": "all", "half": "0:15"}
"""Which prompts, and which layers of them."""


def memory(quick: bool) -> Records:
    """Row 4."""
    return [against_one_batch(kind, 4 if quick else 24, 2 if quick else 5) for kind in KINDS]


def against_one_batch(kind: str, count: int, rounds: int) -> dict[str, object]:
    def peak(work: str) -> int:
        command = [sys.executable, __file__, "--peak-of", work, "--kind", kind, "--count", str(count)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    with ThreadPoolExecutor(os.cpu_count()) as processes:  # they do not share what is measured
        peaks = list(processes.map(peak, ["one-batch", "ours"] * rounds))
    pairs = list(zip(peaks[::2], peaks[1::2], strict=True))
    return {
        "row": 4,
        "name": f"peak memory of reading, bf16, {kind}",
        "yardstick": "weights and one batch of the bare forward",
        "at_most": 1.1,
        **spread([ours / theirs for theirs, ours in pairs]),
        "bytes_theirs": pairs[0][0] * 1024,
        "bytes_ours": pairs[0][1] * 1024,
        "prompts": count,
    }


def peak_of(work: str, kind: str, count: int) -> int:
    """Kilobytes of this process at its peak, above what it held with everything imported and no model."""
    import torch
    from defection.activations import capture
    from defection.activations.chat import tokenize
    from defection.activations.memory import give_back_memory
    from reading import bare_forward, model_to_read, prompts_of

    torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)  # loads the kernels
    before = resident("VmRSS")
    model = model_to_read("bf16")
    sum(float(weights.sum()) for weights in model.network.parameters())  # pages of a mapped file count once touched
    give_back_memory()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    prompts = prompts_of("shared" if kind == "shared" else "alone", count)
    if work == "ours":
        capture(model, prompts, layers=KINDS[kind], share_prefixes=kind == "shared")
    else:
        ids = tokenize(model.tokenizer, prompts)
        if kind == "half":
            decoder = model.network.get_decoder()
            decoder.layers = decoder.layers[:15]
        bare_forward(model, ids, batches=1)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


PARTS = {"memory": memory}

if __name__ == "__main__":
    if "--peak-of" in sys.argv:
        parser = argparse.ArgumentParser()
        for name in ("--peak-of", "--kind", "--count"):
            parser.add_argument(name, required=True)
        options = parser.parse_args()
        print(peak_of(options.peak_of, options.kind, int(options.count)))
    else:
        main(PARTS, __doc__)
