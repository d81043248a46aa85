from __future__ import annotations

import json
import re

import pytest
from defection.activations import DefectionError
from defection.probes.questions.questions import AFFIRMING, DENYING, NEITHER, parse_questions
from hypothesis import given
from hypothesis import strategies as st

GOOD = {"question": "Is it so?", "defecting": "yes", "other": "no"}


def parse(*rows):
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    return parse_questions(text, "mine.jsonl", "mine")


def test_what_is_left_out_is_filled_in() -> None:
    (found,) = parse("", GOOD)
    assert (found.id, found.family, found.polarity, found.study_only) == ("mine-2", "none", AFFIRMING, False)


@pytest.mark.parametrize(
    ("defecting", "other", "polarity"),
    [
        ("yes", "no", AFFIRMING),
        ("No", "Yes", DENYING),
        ("true", "false", AFFIRMING),
        ("disagree", "agree", DENYING),
        ("A", "B", NEITHER),
        ("yes", "false", NEITHER),
    ],
)
def test_polarity_follows_from_the_answers(defecting: str, other: str, polarity: str) -> None:
    row = GOOD | {"defecting": defecting, "other": other}
    assert parse(row)[0].polarity == polarity
    assert parse(row | {"polarity": polarity})[0].polarity == polarity


def test_words_that_say_nothing_take_the_polarity_they_are_given() -> None:
    assert parse(GOOD | {"defecting": "ja", "other": "nein", "polarity": "affirming"})[0].polarity == AFFIRMING


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{broken", "is not valid JSON"),
        ('{"question": NaN}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("1" * 5000, "is not valid JSON"),
        ('{"question": "\\ud800", "defecting": "yes", "other": "no"}', "is not valid JSON"),
        ('["a list"]', "must be a JSON object"),
        (GOOD | {"question": ""}, "needs 'question'"),
        ({"question": "Is it?", "defecting": "yes"}, "needs 'other'"),
        (GOOD | {"defecting": 1}, "needs 'defecting'"),
        (GOOD | {"other": "Yes "}, "are the same"),
        (GOOD | {"id": 3}, "'id' must be a string"),
        (GOOD | {"family": None}, "'family' must be a string"),
        (GOOD | {"famliy": "honesty"}, "unknown field 'famliy'"),
        (GOOD | {"study_only": "yes"}, "'study_only' must be true or false"),
        (GOOD | {"polarity": "positive"}, "'polarity' must be one of affirming, denying, neither"),
        (GOOD | {"polarity": "denying"}, "says its polarity is 'denying'"),
        (GOOD | {"question": "  is IT\tso? "}, "asks the question of line 1 again"),
    ],
)
def test_a_broken_line_is_refused_in_one_sentence_with_file_and_line(row, complaint: str) -> None:
    with pytest.raises(DefectionError, match=re.escape(complaint)) as caught:
        parse(GOOD, "", row)
    assert str(caught.value).startswith("mine.jsonl line 3")
    assert "\n" not in str(caught.value)


def test_a_repeated_id_is_refused_with_both_lines() -> None:
    with pytest.raises(DefectionError, match=r"line 3: id 'one' was already used on line 1"):
        parse(GOOD | {"id": "one"}, "", {**GOOD, "question": "Is it?", "id": "one"})


def test_a_file_without_questions_is_refused() -> None:
    with pytest.raises(DefectionError, match=r"mine.jsonl holds no questions"):
        parse("", "  ")


def test_a_byte_order_mark_and_line_breaks_inside_strings_are_no_trouble() -> None:
    (found,) = parse_questions("\ufeff" + json.dumps(GOOD | {"family": "a\u2028b"}, ensure_ascii=False), "f", "f")
    assert found.family == "a\u2028b"


def parsed_or_refused(text: str):
    try:
        return parse_questions(text, "mine.jsonl", "mine"), ""
    except DefectionError as error:
        return (), str(error)


TEXT = st.text(min_size=1).filter(str.strip)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6, unique_by=lambda t: " ".join(t[0].casefold().split())))
def test_whatever_is_written_reads_back(rows: list[tuple[str, str]]) -> None:
    written = [
        {"question": question, "defecting": "yes", "other": "no", "family": family, "id": f"q{i}"}
        for i, (question, family) in enumerate(rows)
    ]
    for row, found in zip(written, parse(*written), strict=True):
        assert {field: getattr(found, field) for field in row} == row


@given(
    st.dictionaries(
        st.sampled_from(["question", "defecting", "other", "id", "family", "polarity", "study_only"]) | st.text(),
        VALUES | TEXT,
    )
)
def test_any_object_is_read_or_refused_in_one_sentence(row) -> None:
    found, complaint = parsed_or_refused(json.dumps(row))
    if found:
        assert found[0].defecting.strip().casefold() != found[0].other.strip().casefold()
    else:
        assert complaint.startswith("mine.jsonl line 1")
        assert "\n" not in complaint


@given(st.text())
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    found, complaint = parsed_or_refused(text)
    assert found or re.match(r"mine.jsonl (line \d+|holds no questions)", complaint)
