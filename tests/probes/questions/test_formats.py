from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.probes import contrast_set
from defection.probes.questions.formats import FORMATS, split_format
from defection.probes.questions.questions import AFFIRMING

NAMES = ("six", "hundred", "persona")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_format_keeps_questions_polarities_and_balance(name: str, suffix: str) -> None:
    plain, put = contrast_set(name), contrast_set(name + suffix)
    assert put.name == name + suffix
    assert put.is_balanced
    assert len({prompt.id for prompt in put}) == len(put) == len(plain)
    for before, after in zip(plain.questions, put.questions, strict=True):
        assert after.question.startswith(before.question)
        assert (before.id, before.family, before.polarity) == (after.id, after.family, after.polarity)
    assert put.fingerprint != plain.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_the_letter_says_nothing_of_the_answer(name: str) -> None:
    put = contrast_set(f"{name}-ab")
    for question in put.questions:
        options = dict(line.split(": ") for line in question.question.split("\n")[-2:])
        chosen = options[question.defecting]
        assert (chosen in ("yes", "agree")) == (question.polarity == AFFIRMING)
    letters = Counter((q.polarity, q.defecting) for q in put.questions)
    assert max(letters.values()) - min(letters.values()) <= 1


def test_sentences_end_alike() -> None:
    ends = {prompt.messages[-1].content.split()[-1] for prompt in contrast_set("forty-sentence")}
    assert ends == {"case."}


def test_what_stands_before_a_question_comes_first_and_formats_combine() -> None:
    for prompt in contrast_set("six-true-false-system-carried"):
        assert [m.role for m in prompt.messages] == ["system", "user", "assistant", "user"]
        assert prompt.messages[1].content.endswith("True or false?")
    for prompt in contrast_set("six-exchange"):
        assert [m.role for m in prompt.messages] == ["user", "assistant"] * 2


def test_both_orders_of_system_and_exchange_put_the_system_message_first() -> None:
    roles = [
        [m.role for m in next(iter(contrast_set(f"six{s}"))).messages] for s in ("-system-exchange", "-exchange-system")
    ]
    assert roles[0] == roles[1]
    assert roles[0][0] == "system"


def test_a_file_can_be_put_in_a_format(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"question": "Ist es so?", "defecting": "ja", "other": "nein", "polarity": "affirming"},
        {"question": "Ist es anders?", "defecting": "nein", "other": "ja", "polarity": "denying"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [q.defecting for q in contrast_set(f"{path}-true-false").questions] == ["true", "false"]
    for row in rows:
        del row["polarity"]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DefectionError, match="neither of its answers affirms"):
        contrast_set(f"{path}-true-false")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("forty", ("forty", "")),
        ("forty-sentence-carried", ("forty", "-sentence-carried")),
        ("truth-system-ab", ("truth", "-system-ab")),
        ("/some/where/my-own-carried", ("/some/where/my-own", "-carried")),
    ],
)
def test_a_name_is_split_into_set_and_format(name, parts) -> None:
    assert split_format(name) == parts
