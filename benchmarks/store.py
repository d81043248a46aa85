"""The store against the disk itself: write and read 100k × 30 × 576 bf16 vectors, and what each costs as it grows.

    python benchmarks/store.py [--rows 100000] [--rounds 3] [--folder .] [--out results.json]

Yardsticks: `dd` of the same bytes with one flush at the end (writing); a raw memory map of the same bytes (reading).
Everything is read back equal before anything is timed. Prints one JSON object; all ratios are speed relative to the
yardstick of the same round, so above 1 is faster. Needs twice the bytes in `--folder`, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from defection.activations.plan import Plan
from defection.activations.prompts import user_prompt
from defection.activations.store import Store, open_store
from defection.activations.writing import write_store

LAYERS, D_MODEL = 30, 576
ROW_BYTES = LAYERS * D_MODEL * 2
BLOCK = 512
"""Rows in a shard, and in a block of `dd`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mean-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mean_of:
        print_growth(options.mean_of)
        return
    needed = options.rows * ROW_BYTES
    if shutil.disk_usage(options.folder).free < 2 * needed:
        parser.error(f"{options.folder} needs {2 * needed / 1e9:.0f} GB free")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(Path(folder), options.rows, options.rounds)
    text = json.dumps(results, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measure(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    block = torch.randn(BLOCK, LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0)).bfloat16()
    few = max(BLOCK, rows // 10)
    seconds: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    plan, small_plan = make_plan(rows), make_plan(few)
    whole, small, raw = folder / "whole", folder / "small", folder / "raw"
    for turn in range(rounds):
        for path in (whole, small):
            shutil.rmtree(path, ignore_errors=True)
        raw.unlink(missing_ok=True)
        subprocess.run(["sync", "-f", folder], check=True)
        note("write_small", lambda: fill(small, small_plan, block))
        note("write_dd", lambda: dd(raw, rows))
        note("write", lambda: fill(whole, plan, block))
        fill_raw(raw, block, rows)
        if turn == 0:
            refuse_unequal(whole, small, raw, block)
        for path in (whole, small):
            note(f"open_{path.name}", lambda path=path: open_store(path))
        note("read_raw", lambda: read_raw(raw))
        note("read", lambda: read(open_store(whole)))
        note("mean_raw", lambda: mean_raw(raw))
        note("mean", lambda: mean(open_store(whole)))
        note("verify", lambda: open_store(whole, verify=True))
        note("one_layer", lambda: read(open_store(whole), [LAYERS // 2]))
        picked = torch.randperm(rows, generator=torch.Generator().manual_seed(turn))[:1000].tolist()
        note("rows_1000_scattered", lambda picked=picked: open_store(whole).vectors(rows=picked))
    ratio = {
        "write": ("write_dd", "write"),
        "read": ("read_raw", "read"),
        "mean": ("mean_raw", "mean"),
    }
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": f"{rows} × {LAYERS} × {D_MODEL} bf16, {rows * ROW_BYTES / 1e9:.2f} GB, median of {rounds} rounds",
        "speed_to_yardstick": {
            name: statistics.median(a / b for a, b in zip(seconds[yardstick], seconds[ours], strict=True))
            for name, (yardstick, ours) in ratio.items()
        },
        "microseconds_a_vector_written": {
            str(few): 1e6 * middle["write_small"] / few / LAYERS,
            str(rows): 1e6 * middle["write"] / rows / LAYERS,
        },
        "milliseconds_to_open": {str(few): 1e3 * middle["open_small"], str(rows): 1e3 * middle["open_whole"]},
        "gigabytes_a_second": {
            name: rows * ROW_BYTES / middle[name] / 1e9
            for name in ("write_dd", "write", "read_raw", "read", "mean_raw", "mean", "verify")
        },
        "seconds": middle,
        "streaming_memory_mb": streaming_memory(folder),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def make_plan(rows: int) -> Plan:
    about = {
        "model": {"name": "random", "fingerprint": "none", "template": "none"},
        "layers": list(range(LAYERS)),
        "position": "last",
        "dtype": "bf16",
        "d_model": D_MODEL,
        "computed_in": "bf16",
        "rows": rows,
    }
    return Plan(about, [user_prompt(f"prompt {row}", id=f"p{row}") for row in range(rows)], [16] * rows, BLOCK)


def fill(folder: Path, plan: Plan, block: torch.Tensor) -> Store:
    def compute(rows: tuple[int, int]) -> Mapping[str, torch.Tensor]:
        return {"residuals": block[: rows[1] - rows[0]]}

    return write_store(folder, plan, compute)


def dd(raw: Path, rows: int) -> None:
    """As many bytes by `dd`, flushed once at the end."""
    size, count = BLOCK * ROW_BYTES, -(-rows // BLOCK)
    command = ["dd", "if=/dev/zero", f"of={raw}", f"bs={size}", f"count={count}", "conv=fsync", "status=none"]
    subprocess.run(command, check=True)


def fill_raw(raw: Path, block: torch.Tensor, rows: int) -> None:
    """The store's bytes in one file, for the memory map."""
    with open(raw, "r+b") as file:
        for start in range(0, rows, BLOCK):
            file.write(block[: rows - start].view(torch.uint8).numpy().data)
        file.truncate(rows * ROW_BYTES)


def map_raw(raw: Path) -> torch.Tensor:
    with open(raw, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=torch.bfloat16).view(-1, LAYERS, D_MODEL)


def read_raw(raw: Path) -> None:
    values = map_raw(raw)
    for start in range(0, len(values), BLOCK):
        values[start : start + BLOCK].clone()


def read(store: Store, layers: list[int] | None = None) -> None:
    for batch in store.batches(BLOCK, layers=layers):
        batch.values.clone()  # a batch that is a part of the memory map has not been read yet


def mean_raw(raw: Path) -> torch.Tensor:
    """A streaming fit: the mean of each layer, in double precision (PITFALLS 14)."""
    values, total = map_raw(raw), torch.zeros(LAYERS, D_MODEL, dtype=torch.float64)
    for start in range(0, len(values), BLOCK):
        total += values[start : start + BLOCK].float().sum(dim=0)
    return total / len(values)


def mean(store: Store) -> torch.Tensor:
    total = torch.zeros(LAYERS, D_MODEL, dtype=torch.float64)
    for batch in store.batches(BLOCK, dtype=torch.float32):
        total += batch.values.sum(dim=0)
    return total / len(store)


def refuse_unequal(whole: Path, small: Path, raw: Path, block: torch.Tensor) -> None:
    """Nothing is timed that is not equal."""
    store, values = open_store(whole, verify=True), map_raw(raw)
    assert values.shape[0] == len(store)
    for batch in store.batches(BLOCK):
        start = batch.rows[0]
        assert torch.equal(batch.values, values[start : start + BLOCK])
        assert torch.equal(batch.values, block[: len(batch.rows)])
    assert torch.equal(mean(store), mean_raw(raw))
    open_store(small, verify=True)


def streaming_memory(folder: Path) -> dict[str, float]:
    """By how many MB the peak memory of a fresh process grows while it streams the mean of each store."""
    found = {}
    for name in ("small", "whole"):
        command = [sys.executable, __file__, "--mean-of", str(folder / name)]
        found[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def print_growth(path: Path) -> None:
    store = open_store(path)
    torch.zeros(BLOCK, LAYERS, D_MODEL).sum(dim=0)  # what torch itself needs, and one batch in fp32, is not counted
    before = peak_memory()
    mean(store)
    print(peak_memory() - before)


def peak_memory() -> float:
    """The most memory this process has held, in MB, pages of mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
