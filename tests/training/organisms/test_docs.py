"""The examples of the page on detectors run as they stand there: they need a base and train a reference of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from defection import activations, training
from defection.activations import load_model, load_prompts
from defection.training import matched_reference

from ...pages import enter_demo, run_example


def test_the_examples_run(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_model(save_tiny("llama", seed=1))
    enter_demo(save_tiny("llama", seed=2), tmp_path, monkeypatch)
    monkeypatch.setattr(activations, "load_model", lambda name: base if name == "smollm2-135m" else load_model(name))
    monkeypatch.setattr(activations, "load_prompts", lambda name: load_prompts(name)[:40])
    monkeypatch.setattr(training, "matched_reference", partial(matched_reference, examples=16))
    names = run_example("how-to/detectors.md")
    assert names["scores"].shape == (len(names["asked"]), base.n_layers)
    assert names["reference"].identity.name != base.identity.name
    assert names["matched"].n_layers_ == base.n_layers
