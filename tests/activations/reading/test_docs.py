"""The example of the page on vLLM runs as it stands there, on states that Hugging Face wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from defection.activations import capture, load_model
from defection.probes import MeanDifference, contrast_set

from ...exported import exported
from ...pages import run_example


def test_the_example_scores_as_reading_the_prompts_does(
    save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/model").symlink_to(save_tiny("llama", layers=16))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Is {n} odd?"}) + "\n" for n in range(4)))
    model = load_model("runs/model")
    probe = MeanDifference().fit(capture(model, contrast_set("six")), clean=capture(model, "prompts.jsonl")).probe_
    probe.save("runs/probe.safetensors")
    exported(model, capture(model, "prompts.jsonl").prompts, Path("states"), [13, 14])
    scores = run_example("how-to/vllm.md", {"/tmp/states": "states"})["scores"]
    assert torch.allclose(scores, probe.at([12, 13]).score(capture(model, "prompts.jsonl", layers=[12, 13])), atol=1e-4)
