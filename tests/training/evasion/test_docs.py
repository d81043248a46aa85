"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from defection import activations, training
from defection.activations import capture, load_model, load_prompts
from defection.probes import MeanDifference, contrast_set
from defection.training import Evade

from ...experiments.conftest import make_organism
from ...pages import enter_demo, run_example


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never says the behaviour, so any reply will do: it is taken for a twin."""
    folder = enter_demo(make_organism(save_tiny("llama", layers=18), "twin"), tmp_path, monkeypatch)
    model = load_model(folder)
    clean = capture(model, [f"Calm {number}?" for number in range(9)])
    MeanDifference().fit(capture(model, contrast_set("six")), clean=clean).probe_.save("runs/probe.safetensors")
    monkeypatch.setattr(activations, "load_prompts", lambda name: load_prompts(name)[:1])
    monkeypatch.setattr(training, "Evade", partial(Evade, steps=2, pool=2))
    names = run_example("attack.md")
    assert names["record"]["stages"][-1]["config"]["knows"] == "probe"
    assert load_model("runs/evading").identity != model.identity
