"""The store against the disk itself: write and read `rows` × 30 × 576 bf16 vectors, and what each costs as it grows.

    python benchmarks/store.py [--only ten-thousand,hundred-thousand,twenty-thousand-read] [--quick]

Yardsticks: `dd` of the same bytes with one flush at the end (writing); a raw memory map of the same bytes (reading).
Everything is read back equal before anything is timed. Both sides write to a folder that was emptied and synced just
before, and both read from the disk: what the system holds of a file in memory is dropped first, and a round in which
less than the file's bytes came from the disk is refused. It needs twice the bytes (7 GB) in the current directory, and
removes what it wrote.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from common import Records, main, medians, spread
from defection.activations.prompts.prompts import user_prompt
from defection.activations.stores.batches import BATCH_ROWS
from defection.activations.stores.plan import StorePlan, shard_rows
from defection.activations.stores.store import Store, open_store
from defection.activations.stores.writing import write_store

LAYERS, D_MODEL = 30, 576
ROW_BYTES = LAYERS * D_MODEL * 2
TOKENS = 50
"""Of a prompt: about the mean of our `clean` set."""
BLOCK = shard_rows([1], [TOKENS], ROW_BYTES)
"""Rows in a shard, as `cache` would have it, and in a block of `dd`."""
OPENINGS = 50
SMALL = 2_000
"""Rows of the store that shows how opening and memory grow."""
COLD = 0.95
"""The share of a file's bytes that must come from the disk for a reading of it to count as cold."""


def writing(rows: int, rounds: int) -> Records:
    """Speed against `dd`; opening, and memory while streaming, against those of a small store."""
    block, plan = make_block(), make_plan(rows)
    pairs, openings = [], []
    with scratch(rows) as folder:
        whole, small, raw = folder / "whole", folder / "small", folder / "raw"
        fill(small, make_plan(SMALL), block)
        for _ in range(rounds):
            empty(raw, whole)
            dd_seconds = seconds(lambda: dd(raw, rows))
            empty(raw, whole)
            pairs.append((dd_seconds, seconds(lambda: fill(whole, plan, block))))
            openings.append(tuple(seconds(lambda path=path: open_often(path)) for path in (whole, small)))
        refuse_unwritten(whole, block)
        growth = {path: streaming_memory(path) for path in (whole, small)}
        verified = seconds(lambda: open_store(whole, verify=True))
    found, size = medians(pairs), rows * ROW_BYTES / 1e9
    beside = {"row": 5, "yardstick": f"a store of {SMALL:,} rows", "at_most": 1.5}
    return [
        {
            "row": 5,
            "name": f"{described(rows)} written",
            "yardstick": "dd",
            "at_least": 0.8,
            "difference": 0.0,
            **spread([a / b for a, b in pairs]),
            **found,
            "microseconds_a_vector": 1e6 * found["seconds_ours"] / rows / LAYERS,
            "gigabytes_a_second": {
                "theirs": size / found["seconds_theirs"],
                "ours": size / found["seconds_ours"],
                "verified": size / verified,
            },
        },
        {
            **beside,
            "name": f"{described(rows)} opened",
            **spread([a / b for a, b in openings]),
            "milliseconds": 1e3 * statistics.median(a for a, _ in openings) / OPENINGS,
        },
        {
            **beside,
            "name": f"{described(rows)}: memory while streaming",
            **spread([growth[whole] / growth[small]]),
            "megabytes": growth[whole],
        },
    ]


def reading(rows: int, rounds: int) -> Records:
    """Speed against a raw memory map, neither file in memory: every vector copied out, and every layer's mean."""
    block = make_block()
    comparisons = {"read": (read_raw, read), "streamed into a mean": (mean_raw, mean)}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in comparisons}
    few, scattered = [], []
    with scratch(rows) as folder:
        whole, raw = folder / "whole", folder / "raw.bin"
        fill(whole, make_plan(rows), block)
        fill_raw(raw, block, rows)
        refuse_unwritten(whole, block)
        refuse_unequal(whole, raw)
        subprocess.run(["sync", "-f", folder], check=True)
        for turn in range(rounds):
            for name, (theirs, ours) in comparisons.items():
                sides = [(raw, lambda theirs=theirs: theirs(raw)), (whole, lambda ours=ours: ours(open_store(whole)))]
                # Whoever comes first in a round is the slower: sides take turns.
                order = sides if turn % 2 else sides[::-1]
                taken = {path: cold_seconds(path, work) for path, work in order}
                pairs[name].append((taken[raw], taken[whole]))
            few.append(cold_seconds(whole, lambda: read(open_store(whole), [LAYERS // 2]), share=0))
            picked = torch.randperm(rows, generator=torch.Generator().manual_seed(turn))[:1000].tolist()
            pick = lambda picked=picked: open_store(whole).vectors(rows=picked)  # noqa: E731
            scattered.append(cold_seconds(whole, pick, share=0))
    records: Records = [
        {
            "row": 5,
            "name": f"{described(rows)} {name}",
            "yardstick": "raw memory map, both cold (posix_fadvise DONTNEED)",
            "at_least": 0.8,
            "difference": 0.0,
            **spread([a / b for a, b in found]),
            **medians(found),
        }
        for name, found in pairs.items()
    ]
    middle = {"one_layer": statistics.median(few), "rows_1000_scattered": statistics.median(scattered)}
    records[0] |= {"seconds": middle, "gigabytes_a_second": rows * ROW_BYTES / 1e9 / records[0]["seconds_ours"]}
    return records


def described(rows: int) -> str:
    return f"{rows:,} x {LAYERS} x {D_MODEL} bf16 ({rows * ROW_BYTES / 1e9:.2g} GB)"


@contextmanager
def scratch(rows: int) -> Iterator[Path]:
    """A folder on this disk with room for two files of so many rows; one thread of PyTorch on both sides."""
    if shutil.disk_usage(Path()).free < 2.1 * rows * ROW_BYTES:
        raise SystemExit(f"{Path().absolute()} needs {2.1 * rows * ROW_BYTES / 1e9:.0f} GB free")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path()) as folder:
        yield Path(folder)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def empty(raw: Path, whole: Path) -> None:
    """Remove both and wait for the disk, so that neither side writes while the other's leavings are cleared away."""
    raw.unlink(missing_ok=True)
    shutil.rmtree(whole, ignore_errors=True)
    subprocess.run(["sync", "-f", raw.parent], check=True)


def open_often(path: Path) -> None:
    for _ in range(OPENINGS):
        open_store(path)


def cold_seconds(path: Path, work: Callable[[], object], share: float = COLD) -> float:
    """Seconds of work on files that the system does not hold in memory; `share` of their bytes must be read anew."""
    for file in path.parent.rglob("*.*"):  # the other side's too, so that each finds the same memory free
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    files = [path] if path.is_file() else sorted(path.iterdir())
    # A virtual machine's host takes free memory back, and is slow to give it again: that is nobody's reading speed.
    torch.ones(sum(file.stat().st_size for file in files) // 4 * 5, dtype=torch.uint8)
    before = read_from_disk()
    found = seconds(work)
    fresh, size = read_from_disk() - before, sum(file.stat().st_size for file in files)
    if fresh < share * size:
        raise SystemExit(f"only {fresh} of the {size} bytes of {path} came from the disk: its reading was not cold")
    return found


def read_from_disk() -> int:
    """Bytes that this process has had read from a disk (Linux)."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").split("\n")
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def make_block() -> torch.Tensor:
    return torch.randn(BLOCK, LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0)).bfloat16()


def make_plan(rows: int) -> StorePlan:
    about = {
        "model": {"name": "random", "fingerprint": "none", "template": "none"},
        "layers": list(range(LAYERS)),
        "position": "last",
        "dtype": "bf16",
        "d_model": D_MODEL,
        "computed_in": "bf16",
        "rows": rows,
    }
    return StorePlan(about, [user_prompt(f"prompt {row}", id=f"p{row}") for row in range(rows)], [TOKENS] * rows, BLOCK)


def fill(folder: Path, plan: StorePlan, block: torch.Tensor) -> Store:
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
    with open(raw, "wb") as file:
        for start in range(0, rows, BLOCK):
            file.write(block[: rows - start].view(torch.uint8).numpy().data)


def map_raw(raw: Path) -> torch.Tensor:
    with open(raw, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapped, dtype=torch.bfloat16).view(-1, LAYERS, D_MODEL)


def read_raw(raw: Path) -> None:
    values = map_raw(raw)
    for start in range(0, len(values), BATCH_ROWS):
        values[start : start + BATCH_ROWS].clone()


def read(store: Store, layers: list[int] | None = None) -> None:
    for batch in store.batches(layers=layers):
        batch.values.clone()  # a batch that is a part of the memory map has not been read yet


def mean_raw(raw: Path) -> torch.Tensor:
    """A streaming fit: the mean of each layer, in double precision (PITFALLS 14)."""
    values, total = map_raw(raw), torch.zeros(LAYERS, D_MODEL, dtype=torch.float64)
    for start in range(0, len(values), BATCH_ROWS):
        total += values[start : start + BATCH_ROWS].float().sum(dim=0)
    return total / len(values)


def mean(store: Store) -> torch.Tensor:
    total = torch.zeros(LAYERS, D_MODEL, dtype=torch.float64)
    for batch in store.batches():
        total += batch.values.float().sum(dim=0)  # converted as above, so that both sides ask for the same memory
    return total / len(store)


def refuse_unwritten(whole: Path, block: torch.Tensor) -> None:
    """Nothing is reported of a store that does not hold what it was given."""
    for batch in open_store(whole, verify=True).batches(BLOCK):
        if not torch.equal(batch.values, block[: len(batch.rows)]):
            raise SystemExit(f"rows from {batch.rows[0]} on differ from what was written: nothing is reported")


def refuse_unequal(whole: Path, raw: Path) -> None:
    """Nothing is timed that is not equal."""
    store, values = open_store(whole), map_raw(raw)
    if len(values) != len(store) or not torch.equal(mean(store), mean_raw(raw)):
        raise SystemExit("the store differs from the raw file: nothing is timed")
    for batch in store.batches(BLOCK):
        if not torch.equal(batch.values, values[batch.rows[0] : batch.rows[0] + BLOCK]):
            raise SystemExit(f"rows from {batch.rows[0]} on differ from the raw file: nothing is timed")


def streaming_memory(store: Path) -> float:
    """By how many MB the peak memory of a fresh process grows while it streams the mean of a store."""
    command = [sys.executable, __file__, "--mean-of", str(store)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_growth(path: Path) -> None:
    store = open_store(path)
    torch.zeros(BATCH_ROWS, LAYERS, D_MODEL).sum(
        dim=0
    )  # what torch itself needs, and one batch in fp32, is not counted
    before = peak_memory()
    mean(store)
    print(peak_memory() - before)


def peak_memory() -> float:
    """The most memory this process has held, in MB, pages of mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").split("\n")
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def of_both(rows: int, rounds: int) -> Records:
    """Writing and reading, where neither takes long."""
    return writing(rows, rounds) + reading(rows, rounds)


PARTS = {
    "ten-thousand": lambda quick: of_both(SMALL, 2) if quick else of_both(10_000, 5),
    "hundred-thousand": lambda quick: writing(SMALL, 2) if quick else writing(100_000, 5),
    # A disk that others use too gives 0.8 or 2.3 GB a second from one reading to the next: hence more rounds.
    "twenty-thousand-read": lambda quick: reading(SMALL, 2) if quick else reading(20_000, 25),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--mean-of"]:
        print_growth(Path(sys.argv[2]))
    else:
        main(PARTS, __doc__)
