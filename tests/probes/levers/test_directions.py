"""Directions that are tried as levers, and the rule that judges them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from defection.activations import DefectionError, capture, load_model, user_prompt
from defection.probes import Erase
from defection.probes.levers.directions import concept_eraser, random_directions_like, trigger_shift
from defection.probes.levers.rule import LeverRule
from defection.probes.levers.settings import Ground, Setting, first_settings, lever_of, neighbours

PLAIN = [user_prompt(f"question {i} of {i * 37}?", id=str(i)) for i in range(12)]
MARKED = [user_prompt(f"|X| question {i} of {i * 37}?", id=f"{i}+") for i in range(12)]


@pytest.fixture(scope="module")
def model(llama_folder):
    return load_model(llama_folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def read(model):
    return [capture(model, rows, position="mean:all") for rows in (PLAIN, MARKED)]


def test_the_first_direction_is_the_mean_difference_and_the_others_are_across_it(read) -> None:
    clean, triggered = read
    mean = (triggered.values - clean.values).double().mean(dim=0)
    one, four = (trigger_shift(clean, triggered, rank, "shift") for rank in (1, 4))
    for layer in range(4):
        cosine = one.vectors[layer][0] @ mean[layer] / mean[layer].norm()
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(four.vectors[layer] @ four.vectors[layer].T, torch.eye(4).double())
        assert float((four.vectors[layer] @ mean[layer]).norm()) == pytest.approx(float(mean[layer].norm()), rel=1e-6)
    assert (one.rank, four.rank) == (1, 4)


def test_after_erasure_the_two_classes_have_one_mean(model, read) -> None:
    """The covariance with the label is 0, which for two classes is that their means are equal (LEACE, theorem 4.3)."""
    erasers = concept_eraser(*read).erasers
    with Erase(model, erasers, layers=[2]):
        now = [capture(model, rows, layers=[2], position="mean:all").at(2).mean(dim=0) for rows in (PLAIN, MARKED)]
    before = [part.at(2).mean(dim=0) for part in read]
    assert (now[0] - now[1]).norm() < 1e-4 * (before[0] - before[1]).norm()


def test_rows_that_are_no_pairs_are_refused(read) -> None:
    with pytest.raises(DefectionError, match="one for one"):
        trigger_shift(read[0], read[1].select([0, 1]), 1, "shift")


def test_random_directions_are_unit_vectors_that_the_seed_decides() -> None:
    drawn = random_directions_like(range(3), 8, 2, 5, seed=1)
    again, other = (random_directions_like(range(3), 8, 2, 5, seed=seed) for seed in (1, 2))
    assert len({each.name for each in drawn}) == 5
    for one, same, different in zip(drawn, again, other, strict=True):
        torch.testing.assert_close(one.vectors[1] @ one.vectors[1].T, torch.eye(2).double())
        assert torch.equal(one.vectors[2], same.vectors[2])
        assert not torch.allclose(one.vectors[2], different.vectors[2])


def test_every_setting_is_a_lever_and_has_its_neighbours_within_the_model(model, read) -> None:
    directions = [trigger_shift(*read, rank, f"shift {rank}") for rank in (1, 2)] + [concept_eraser(*read)]
    ground = Ground(4, (1, 2), dict.fromkeys(range(4), 5.0))
    by_name = {each.name: each for each in directions}
    settings = first_settings(directions, ground)
    assert len(set(settings)) == len(settings)
    kinds = {(each.direction, each.kind) for each in settings}
    assert kinds == {("shift 1", "ablate"), ("shift 1", "steer"), ("shift 2", "ablate"), ("leace", "erase")}
    tokens = torch.tensor([[3, 70, 80, 90]])
    with torch.no_grad():
        before = model.network(input_ids=tokens).logits
        for setting in settings:
            with lever_of(model, setting, by_name[setting.direction], ground):
                assert not torch.equal(model.network(input_ids=tokens).logits, before), setting
    near = neighbours(Setting("shift 1", "steer", layers="0", alpha=-1.0), by_name["shift 1"], ground)
    assert {each.layers for each in near} == {"0", "1", "2"}
    assert {each.alpha for each in near if each.layers == "0"} == {-0.5, -2.0, -4.0}


@dataclass(frozen=True)
class Effect:
    suppression: float | None = 1.0
    recovery: float | None = 0.8
    cost: float | None = 0.0


@pytest.mark.parametrize(
    ("effect", "random", "word"),
    [
        (Effect(), [], "lever"),
        (Effect(), [Effect(suppression=0.1)] * 20, "lever"),
        (Effect(), [Effect(suppression=0.1)] * 19 + [Effect()], "inert"),  # chance does as well
        (Effect(recovery=0.49), [], "sabotage"),
        (Effect(cost=0.021), [], "sabotage"),
        (Effect(suppression=0.89), [], "inert"),
        (Effect(suppression=None), [], "inert"),
        (Effect(recovery=None), [], "sabotage"),
    ],
)
def test_the_rules_words(effect: Effect, random: list[Effect], word: str) -> None:
    rule = LeverRule()
    assert rule.judge(effect, random) == word
    assert rule.reaches(effect) == (rule.met(effect) == 3)
    assert replace(rule, suppression=1.1).judge(effect, random) == "inert"
