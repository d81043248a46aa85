"""`--date`: what today is to a chat template that writes it, from the store to the score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m['role'] }}: {{ m['content'] }}{% endfor %}"


@pytest.fixture
def dated_folder(llama_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = DATED
    tokenizer.save_pretrained(folder)
    return folder


def test_a_probe_of_one_day_scores_on_that_day_only(run, dated_folder: Path, tmp_path: Path, capsys) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(8)))
    fit = ("fit", dated_folder, "--contrast", "six", "--probe", "mean-difference", "--clean", prompts)
    probe, scores = tmp_path / "probe.safetensors", tmp_path / "scores.jsonl"
    assert run(*fit, "--layers", 2, "--date", "2031-01-02", "--out", probe) == 0
    score = ("score", dated_folder, prompts, "--probe", probe, "--out", scores)
    capsys.readouterr()
    assert run(*score) == 2
    assert "2031-01-02" in capsys.readouterr().err
    assert not scores.exists()
    assert run(*score, "--date", "2031-01-02") == 0
    assert len(scores.read_text().splitlines()) == 8


def test_a_store_of_one_day_is_repaired_on_another(run, dated_folder: Path, tmp_path: Path) -> None:
    prompts, store = tmp_path / "prompts.jsonl", tmp_path / "store"
    prompts.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(8)))
    assert run("cache", dated_folder, prompts, "--date", "2031-01-02", "--out", store) == 0
    (shard,) = store.glob("shard-*.safetensors")
    before = shard.read_bytes()
    shard.unlink()
    assert run("store", "repair", store, "--model", dated_folder) == 0
    assert shard.read_bytes() == before


def test_what_is_no_date_is_refused(run, dated_folder: Path, tmp_path: Path, capsys) -> None:
    store = tmp_path / "store"
    assert run("cache", dated_folder, "clean", "--date", "tomorrow", "--out", store) == 2
    assert "'tomorrow' is no date" in capsys.readouterr().err
    assert not store.exists()
