"""The store against the disk itself: write and read `rows` × 30 × 576 bf16 vectors, and what each costs as it grows.

    python benchmarks/store.py [--only ten-thousand,hundred-thousand] [--quick]

Yardsticks: `dd` of the same bytes with one flush at the end (writing); a raw memory map of the same bytes (reading).
Everything is read back equal before anything is timed, and lies in the system's cache whenever reading is timed. It
needs twice the bytes (7 GB) in the current directory, and removes what it wrote.
"""

from __future__ import annotations

import mmap
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from common import Records, main, medians, spread
from defection.activations.plan import Plan
from defection.activations.prompts import user_prompt
from defection.activations.store import Store, open_store
from defection.activations.writing import write_store

LAYERS, D_MODEL = 30, 576
ROW_BYTES = LAYERS * D_MODEL * 2
BLOCK = 512
"""Rows in a shard, and in a block of `dd`."""
OPENINGS = 50
ENOUGH = 30_000
"""Rows that are read in a round: a small store is read several times."""
SMALL = 2_000
"""Rows of the store that shows how opening and memory grow."""
COMPARISONS = {
    "written": ("dd", "write_dd", "write"),
    "read": ("raw memory map", "read_raw", "read"),
    "streamed into a mean": ("raw memory map", "mean_raw", "mean"),
}


def measured(rows: int, rounds: int) -> Records:
    """Row 5: speed against the yardsticks, opening and memory against those of a small store."""
    if shutil.disk_usage(Path()).free < 2.1 * rows * ROW_BYTES:
        raise SystemExit(f"{Path().absolute()} needs {2.1 * rows * ROW_BYTES / 1e9:.0f} GB free")
    with tempfile.TemporaryDirectory(dir=Path()) as folder:
        seconds = timed(Path(folder), rows, rounds)
        growth = {name: streaming_memory(Path(folder) / name) for name in ("small", "whole")}
    what = f"{rows:,} x {LAYERS} x {D_MODEL} bf16 ({rows * ROW_BYTES / 1e9:.2g} GB)"
    records: Records = []
    for name, (yardstick, theirs, ours) in COMPARISONS.items():
        pairs = list(zip(seconds[theirs], seconds[ours], strict=True))
        ratios = spread([a / b for a, b in pairs])
        record = {"row": 5, "name": f"{what} {name}", "yardstick": yardstick, "at_least": 0.8, "difference": 0.0}
        records.append({**record, **ratios, **medians(pairs)})
    opening = list(zip(seconds["open_whole"], seconds["open_small"], strict=True))
    records += [
        {
            "row": 5,
            "name": f"{what} opened",
            "yardstick": f"a store of {SMALL:,} rows",
            "at_most": 1.5,
            **spread([a / b for a, b in opening]),
            "milliseconds": 1e3 * statistics.median(seconds["open_whole"]) / OPENINGS,
        },
        {
            "row": 5,
            "name": f"{what}: memory while streaming",
            "yardstick": f"a store of {SMALL:,} rows",
            "at_most": 1.5,
            **spread([growth["whole"] / growth["small"]]),
            "megabytes": growth["whole"],
        },
    ]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    records[0]["microseconds_a_vector"] = 1e6 * middle["write"] / rows / LAYERS
    records[0]["gigabytes_a_second"] = {
        name: rows * ROW_BYTES / middle[name] / 1e9 for name in ("write_dd", "write", "read_raw", "read", "verify")
    }
    records[0]["seconds"] = {name: middle[name] for name in ("one_layer", "rows_1000_scattered")}
    return records


def timed(folder: Path, rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, round after round; what it wrote stays in the folder."""
    block = torch.randn(BLOCK, LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0)).bfloat16()
    seconds: dict[str, list[float]] = {}
    torch.set_num_threads(1)

    def note(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    plan = make_plan(rows)
    whole, small, raw = folder / "whole", folder / "small", folder / "raw"
    fill(small, make_plan(SMALL), block)
    for turn in range(rounds):
        shutil.rmtree(whole, ignore_errors=True)
        raw.unlink(missing_ok=True)
        subprocess.run(["sync", "-f", folder], check=True)
        note("write_dd", lambda: dd(raw, rows))
        note("write", lambda: fill(whole, plan, block))
        fill_raw(raw, block, rows)
        if turn == 0:
            refuse_unequal(whole, raw, block)
        subprocess.run(["sync", "-f", folder], check=True)  # or the raw file's pages are still on their way out
        for path in (whole, small):
            note(f"open_{path.name}", lambda path=path: [open_store(path) for _ in range(OPENINGS)])
        for _ in range(max(1, ENOUGH // rows)):
            warm(raw)
            note("read_raw", lambda: read_raw(raw))
            note("mean_raw", lambda: mean_raw(raw))
            warm(whole)
            note("read", lambda: read(open_store(whole)))
            note("mean", lambda: mean(open_store(whole)))
        note("verify", lambda: open_store(whole, verify=True))
        note("one_layer", lambda: read(open_store(whole), [LAYERS // 2]))
        picked = torch.randperm(rows, generator=torch.Generator().manual_seed(turn))[:1000].tolist()
        note("rows_1000_scattered", lambda picked=picked: open_store(whole).vectors(rows=picked))
    return seconds


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


def warm(path: Path) -> None:
    """Bring the bytes into the system's cache: where memory is short, what was written first is gone from it by now."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)


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


def refuse_unequal(whole: Path, raw: Path, block: torch.Tensor) -> None:
    """Nothing is timed that is not equal."""
    store, values = open_store(whole, verify=True), map_raw(raw)
    if len(values) != len(store) or not torch.equal(mean(store), mean_raw(raw)):
        raise SystemExit("the store differs from the raw file: nothing is timed")
    for batch in store.batches(BLOCK):
        start = batch.rows[0]
        raws = values[start : start + BLOCK]
        if not (torch.equal(batch.values, raws) and torch.equal(batch.values, block[: len(batch.rows)])):
            raise SystemExit(f"rows from {start} on differ from what was written: nothing is timed")


def streaming_memory(store: Path) -> float:
    """By how many MB the peak memory of a fresh process grows while it streams the mean of a store."""
    command = [sys.executable, __file__, "--mean-of", str(store)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_growth(path: Path) -> None:
    store = open_store(path)
    torch.zeros(BLOCK, LAYERS, D_MODEL).sum(dim=0)  # what torch itself needs, and one batch in fp32, is not counted
    before = peak_memory()
    mean(store)
    print(peak_memory() - before)


def peak_memory() -> float:
    """The most memory this process has held, in MB, pages of mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


PARTS = {
    "ten-thousand": lambda quick: measured(SMALL, 2) if quick else measured(10_000, 5),
    "hundred-thousand": lambda quick: measured(SMALL, 2) if quick else measured(100_000, 3),
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--mean-of"]:
        print_growth(Path(sys.argv[2]))
    else:
        main(PARTS, __doc__)
