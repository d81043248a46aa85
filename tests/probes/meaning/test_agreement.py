from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, ModelIdentity, Residuals
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.agreement import answer_word_direction, leave_one_out, question_directions

LAYERS, WIDTH = (3, 4), 24


def unit(seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


WORD, DEFECTION = unit(1), unit(2)


def read(name: str, *, word: float = 20.0, defection: float = 4.0, noise: float = 1.0) -> Residuals:
    """A set as a model would give it in which the answer word is far louder than what the questions share."""
    prompts = tuple(contrast_set(name))
    generator = torch.Generator().manual_seed(0)
    values = noise * torch.randn(len(prompts), len(LAYERS), WIDTH, generator=generator)
    for row, prompt in enumerate(prompts):
        values[row] += word * WORD if prompt.extra["answer"] in ("yes", "agree") else 0
        values[row] += defection * DEFECTION if prompt.extra["defecting"] else 0
    lengths = tuple(range(len(prompts)))
    return Residuals(values, LAYERS, prompts, lengths, ModelIdentity("toy", "weights", "template"))


@pytest.fixture(scope="module")
def hundred() -> Residuals:
    return read("hundred")


def without_rows(residuals: Residuals, field: str, name: str) -> Residuals:
    return residuals.select([row for row, p in enumerate(residuals.prompts) if p.extra[field] != name])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).min())


@pytest.mark.parametrize("name", ["hundred", "persona"])
def test_in_a_balanced_set_the_answer_word_and_the_mean_difference_do_not_mix(name: str) -> None:
    seen = read(name)
    assert cosine(answer_word_direction(seen), WORD) > 0.99
    assert cosine(MeanDifference().fit(seen).probe_.directions, DEFECTION) > 0.95


def test_what_questions_share_shows_once_the_word_is_out(hundred: Residuals) -> None:
    polarity = torch.tensor([1 if q.polarity == "affirming" else -1 for q in contrast_set("hundred").questions])
    same = (polarity[:, None] == polarity[None, :]) & ~torch.eye(100, dtype=torch.bool)
    loud = question_directions(hundred, keep_word=True).cosines()
    quiet = question_directions(hundred).cosines()
    assert loud[:, same].min() > 0.7
    assert loud[:, polarity[:, None] != polarity[None, :]].max() < -0.5
    assert quiet[:, ~torch.eye(100, dtype=torch.bool)].mean() > 0.1
    assert abs(quiet[:, same].mean() - quiet[:, polarity[:, None] != polarity[None, :]].mean()) < 0.1


def test_without_anything_in_common_questions_do_not_agree() -> None:
    off = ~torch.eye(100, dtype=torch.bool)
    assert question_directions(read("hundred", defection=0.0)).cosines()[:, off].mean().abs() < 0.02


def test_cosines_are_symmetric_with_ones_on_the_diagonal(hundred: Residuals) -> None:
    found = question_directions(hundred)
    table = found.cosines()
    assert torch.allclose(table, table.transpose(1, 2))
    assert torch.allclose(table.diagonal(dim1=1, dim2=2), torch.ones(2, 100).double())
    assert len(found.pairs([4])) == 100 * 100
    assert {row["layer"] for row in found.pairs()} == set(LAYERS)


def test_pairs_and_agreement_are_the_same_numbers(hundred: Residuals) -> None:
    found = question_directions(hundred)
    cosines = {(r["a"], r["b"]): r["cosine"] for r in found.pairs([3])}
    families = dict(zip(found.names, found.families, strict=True))
    row = next(r for r in found.agreement() if r["question"] == "harm-03" and r["layer"] == 3)
    others = [name for name in found.names if name != "harm-03"]
    within = [cosines["harm-03", n] for n in others if families[n] == "harm"]
    across = [cosines["harm-03", n] for n in others if families[n] != "harm"]
    assert row["within_family"] == pytest.approx(sum(within) / len(within))
    assert row["across_families"] == pytest.approx(sum(across) / len(across))


def test_a_lone_question_agrees_with_nobody_in_its_family() -> None:
    rows = question_directions(read("six")).agreement()
    assert {r["question"] for r in rows if r["within_family"] is None} == {"helpfulness-01", "concealment-01"}


@pytest.mark.parametrize(("by", "field"), [("question", "topic"), ("family", "family")])
def test_leaving_one_out_equals_fitting_again_without_it(by, field: str) -> None:
    seen = read("forty-carried")
    found = leave_one_out(seen, by=by).directions
    for name, direction in list(zip(found.names, found.values, strict=True))[::7]:
        again = MeanDifference().fit(without_rows(seen, field, name)).probe_.directions
        scaled = direction / direction.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(scaled.float(), again, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", ["question", "family"])
def test_left_out_answers_are_told_apart_when_questions_share_something_and_by_chance_when_not(by) -> None:
    shared = [row["margin"] > 0 for row in leave_one_out(read("hundred"), by=by).table]
    assert sum(shared) / len(shared) > 0.9
    if by == "question":
        alone = [row["margin"] > 0 for row in leave_one_out(read("hundred", defection=0.0)).table]
        assert 0.35 < sum(alone) / len(alone) < 0.65


def test_an_answer_word_alone_gives_no_margin() -> None:
    """With one question out the rest is not balanced by one; the word must not decide, in either direction."""
    margins = [row["margin"] for row in leave_one_out(read("hundred", word=200.0, defection=0.0, noise=1.0)).table]
    assert 0.35 < sum(m > 0 for m in margins) / len(margins) < 0.65


def test_a_single_question_or_mixed_formats_are_refused() -> None:
    one = read("six").select([0, 1])
    with pytest.raises(DefectionError, match="leaves nothing to fit"):
        leave_one_out(one)
    other = read("persona")
    mixed = replace(
        other,
        values=torch.cat([read("six").values, other.values]),
        prompts=read("six").prompts + other.prompts,
        n_tokens=(1,) * (len(other) + 12),
    )
    with pytest.raises(DefectionError, match="hold 4: 'agree'"):
        answer_word_direction(mixed)
    with pytest.raises(DefectionError, match="both kinds of answer"):
        leave_one_out(read("hundred").select([0, 1, 2]))
