"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest
from defection.activations import capture, load_model, user_prompt
from defection.probes import MeanDifference, contrast_set

from ...pages import enter_demo, run_example


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(enter_demo(save_tiny("llama", seed=5), tmp_path, monkeypatch))
    clean = capture(model, [user_prompt(f"{'so ' * (i % 5)}calm {i}?") for i in range(12)])
    MeanDifference().fit(capture(model, contrast_set("six")), clean=clean).probe_.save("runs/probe.safetensors")
    names = run_example("levers.md")
    assert names["ablated"] != names["before"] != names["steered"]
