import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.processes import Process, this_process
from defection.activations.models.load import load_model
from defection.activations.prompts.prompts import load_prompts
from defection.activations.reading.capture import capture
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

WORKER = """
import sys
from defection.activations import capture, load_model, load_prompts
from defection.activations.basics.processes import this_process
from safetensors.torch import save_file

folder, out, rows_per_shard = sys.argv[1:]
model, prompts = load_model(folder, device="cpu", dtype="bf16"), load_prompts("clean")[:40]
for rows in this_process().rows(len(prompts), int(rows_per_shard)):
    values = capture(model, prompts[rows.start : rows.stop]).values
    save_file({"residuals": values}, f"{out}/{rows.start}.safetensors")
"""


@given(st.integers(0, 500), st.integers(1, 70), st.integers(1, 9))
def test_every_row_belongs_to_exactly_one_process(n_rows: int, rows_per_shard: int, size: int) -> None:
    shares = [Process(rank, size).rows(n_rows, rows_per_shard) for rank in range(size)]
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(n_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 500), st.integers(1, 70), st.integers(1, 9))
def test_shards_are_the_same_whatever_the_number_of_processes(n_rows: int, rows_per_shard: int, size: int) -> None:
    shares = [rows for rank in range(size) for rows in Process(rank, size).rows(n_rows, rows_per_shard)]
    assert sorted(shares, key=lambda rows: rows.start) == Process().rows(n_rows, rows_per_shard)


def test_the_launcher_numbers_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1, 0)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert this_process() == Process(5, 8, 1)


@pytest.mark.parametrize("broken", [{"RANK": "8"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}, {"LOCAL_RANK": "-1"}])
def test_a_broken_launcher_is_refused(monkeypatch: pytest.MonkeyPatch, broken: dict[str, str]) -> None:
    for name, value in ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0"} | broken).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DefectionError, match="launcher"):
        this_process()


@pytest.mark.slow
def test_two_processes_read_what_one_reads(llama_folder: Path, tmp_path: Path) -> None:
    """To the bit, in bf16, since no batch crosses a shard."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(llama_folder), str(tmp_path), "16"],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    model, prompts = load_model(llama_folder, device="cpu", dtype="bf16"), load_prompts("clean")[:40]
    shards = Process().rows(len(prompts), 16)
    together = torch.cat([load_file(tmp_path / f"{rows.start}.safetensors")["residuals"] for rows in shards])
    alone = torch.cat([capture(model, prompts[rows.start : rows.stop]).values for rows in shards])
    assert torch.equal(together, alone)
