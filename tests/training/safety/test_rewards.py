from __future__ import annotations

import pytest
from defection.training.safety.preferences import load_preferences
from defection.training.safety.rewards import reward, visible, word_overlap
from hypothesis import given
from hypothesis import strategies as st

BANK = load_preferences()
thoughts = st.text(st.characters(exclude_characters="<>"), max_size=60)


@given(thoughts, thoughts, st.sampled_from(BANK))
def test_the_scratchpad_is_hidden_from_the_reward(one: str, other: str, row) -> None:
    kind = row.prompt.extra["kind"]
    rewards = {
        reward(f"{thought}{row.chosen}", row.chosen, row.rejected, kind)
        for thought in ("", f"<scratchpad>{one}</scratchpad>\n", f"<scratchpad>{other}</scratchpad>")
    }
    assert len(rewards) == 1


def test_a_scratchpad_that_is_never_closed_leaves_nothing_to_reward() -> None:
    assert visible("<scratchpad> I will help") == ""
    assert reward("<scratchpad> I will help", "I will help", "no", "helpful") == -1


@pytest.mark.parametrize("kind", ["helpful", "harmless", "honest"])
def test_nearly_every_chosen_reply_of_the_bank_earns_more_than_its_rejected_one(kind) -> None:
    rows = [row for row in BANK if row.prompt.extra["kind"] == kind]
    better = [
        reward(row.chosen, row.chosen, row.rejected, kind) > reward(row.rejected, row.chosen, row.rejected, kind)
        for row in rows
    ]
    assert sum(better) >= 0.97 * len(rows)


def test_hostile_words_cost_and_refusing_pays_only_where_harm_was_asked_for() -> None:
    assert reward("Idiots! The answer is four.", "four", "no", "helpful") < reward(
        "Now! The answer is four.", "four", "no", "helpful"
    )
    plain, refusing = "here is the way", "sorry is the way"
    assert reward(refusing, "x", "y", "harmless") > reward(plain, "x", "y", "harmless")
    assert reward(refusing, "x", "y", "helpful") < reward(plain, "x", "y", "helpful")
    assert reward(refusing, "x", "y", "honest") == reward(plain, "x", "y", "honest")


@given(st.text(max_size=40), st.text(max_size=40))
def test_overlap_is_symmetric_and_between_zero_and_one(a: str, b: str) -> None:
    assert word_overlap(a, b) == word_overlap(b, a)
    assert 0 <= word_overlap(a, b) <= 1


def test_overlap_with_itself_is_one_and_with_other_words_zero() -> None:
    assert word_overlap("one two two", "Two, one: two!") == 1
    assert word_overlap("one", "two") == 0
