"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from defection.activations import load_model

from ...pages import enter_demo, run_example
from .conftest import random_probe


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = enter_demo(save_tiny("llama", seed=5), tmp_path, monkeypatch)
    random_probe(load_model(folder)).save("runs/probe.safetensors")
    lines = [json.dumps({"prompt": f"{'so ' * (i % 5)}calm {i}?"}) for i in range(50)]
    Path("calm.jsonl").write_text("\n".join(lines) + "\n")
    names = run_example("monitor.md")
    watch, out = names["watch"], names["out"]
    assert watch.scores.shape == (1, len(watch.replies[0].scores))
    assert isinstance(out, torch.Tensor)
    assert watch.alarms == [reply.alarm for reply in watch.replies]
