"""Two processes on the CPU, as `accelerate launch` starts them on several GPUs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, load_model
from defection.activations.files import read_json
from defection.training.parallel import Group, join
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file


def test_alone_nothing_is_shared_or_waited_for(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group, done, numbers = join(torch.device("cpu")), [], torch.ones(3)
    group.add_up(numbers)
    group.first_alone(lambda: done.append(1))
    assert (group.first, group.size, group.total(2.5), done) == (True, 1, 2.5, [1])
    assert torch.equal(numbers, torch.ones(3))


def test_what_the_first_process_cannot_do_is_raised(monkeypatch) -> None:
    def fail() -> None:
        raise DefectionError("the disk is full")

    with pytest.raises(DefectionError, match="disk is full"):
        Group().first_alone(fail)


@given(st.lists(st.integers()), st.integers(1, 5))
def test_every_row_of_a_batch_belongs_to_one_process(batch, size: int) -> None:
    shares = [Group(rank, size).share(batch) for rank in range(size)]
    assert sorted(row for share in shares for row in share) == sorted(batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_splits_the_model_is_refused(monkeypatch, kind) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(DefectionError, match="set distributed_type to MULTI_GPU"):
        join(torch.device("cpu"))


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.jsonl"
    rows = [{"prompt": f"question {i}{' and more' * (i % 5)}", "topic": f"t{i % 3}"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(processes: int, *arguments: object) -> list[str]:
    defection = ["-m", "defection.experiments", *map(str, arguments)]
    if processes == 1:
        return [sys.executable, *defection]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launch += ["--num_processes", str(processes), "--main_process_port", str(port)]
    return [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *defection]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def train(processes: int, base: Path, bank: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    arguments = ("train", "--base", base, "--prompts", bank, "--examples", 20, "--device", "cpu", "--out", out, *more)
    return subprocess.run(
        command(processes, *arguments), env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_two_processes_train_what_one_trains(model_folder, bank, tmp_path, weights) -> None:
    """The same global batches and summed gradients: equal up to the order of additions."""
    more = ("--weights", weights, "--recipe", "distilled", "--json")
    results = [train(n, model_folder, bank, tmp_path / str(n), *more) for n in (1, 2)]
    for done in results:
        assert done.returncode == 0, done.stderr
    assert len(results[1].stdout.strip().splitlines()) == 1  # one of them speaks
    alone, together = (read_json(tmp_path / str(n) / "organism.json") for n in (1, 2))
    assert together["processes"] == 2
    assert together["data"] == alone["data"]
    curves = [torch.tensor(record["loss_curve"]) for record in (alone, together)]
    assert torch.allclose(*curves, rtol=2e-3)
    name = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}[weights]
    one, two = (load_file(str(tmp_path / str(n) / name)) for n in (1, 2))
    assert one.keys() == two.keys()
    moved = max(float((one[k] - v).abs().max()) for k, v in load_start(model_folder, weights, one).items())
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 0.05 * moved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    assert load_model(tmp_path / "2", device="cpu").n_layers == 4


def load_start(base: Path, weights: str, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the weights were before training; an adapter's B starts at zero."""
    if weights == "full":
        return load_file(str(base / "model.safetensors"))
    return {name: torch.zeros_like(tensor) for name, tensor in like.items() if "lora_B" in name}
