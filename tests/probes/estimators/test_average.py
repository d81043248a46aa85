"""Averages of probes over kinds and question sets: equally loud, and linear in the questions' effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.activations.reading.residuals import joined_residuals
from defection.probes import LogisticProbe, MeanDifference, ProbeAverage, contrast_set
from defection.probes.evidence.shuffles import questions_of


def in_parts(contrast, names):
    """The same texts, question by question dealt to sets of these names."""
    topics = list(dict.fromkeys(prompt.extra["topic"] for prompt in contrast.prompts))
    of = {topic: names[place % len(names)] for place, topic in enumerate(topics)}
    told = [replace(p, extra={**p.extra, "part": of[p.extra["topic"]]}) for p in contrast.prompts]
    return replace(contrast, prompts=tuple(told))


def test_an_average_of_one_kind_on_one_set_is_that_kind(contrast, clean) -> None:
    alone, average = MeanDifference(), ProbeAverage((MeanDifference(),))
    directions = [each.fit(contrast, clean=clean).probe_.directions for each in (alone, average)]
    assert torch.allclose(*directions, atol=1e-5)


def test_the_direction_is_the_sum_of_what_its_questions_add(contrast, clean) -> None:
    parted = in_parts(contrast, ["few", "many", "many"])
    fitted = ProbeAverage().fit(parted, clean=clean).probe_
    questions = questions_of(ProbeAverage(), parted, clean)
    assert questions is not None
    summed = torch.einsum("q,qld->ld", questions.weights(questions.signs[None])[0], questions.effects)
    unit = torch.nn.functional.normalize(summed, dim=-1).float()
    assert torch.allclose(fitted.directions, unit, atol=1e-5)


def test_no_label_has_a_say_in_what_a_question_adds(contrast, clean) -> None:
    """So that shuffled labels are weights of the same directions: those of a fit on texts that say them."""
    turned = replace(
        contrast,
        prompts=tuple(replace(p, extra={**p.extra, "defecting": not p.extra["defecting"]}) for p in contrast.prompts),
    )
    one, other = (questions_of(ProbeAverage(), rows, clean) for rows in (contrast, turned))
    assert one is not None
    assert other is not None
    assert torch.allclose(one.effects, other.effects)
    assert (one.signs == -other.signs).all()


def test_every_set_is_as_loud_whatever_its_scale(contrast, clean) -> None:
    """One set's answers move the residual a hundred times as far: its part of the direction is no larger for it."""
    parted = in_parts(contrast, ["one", "two"])
    loud = torch.tensor([100.0 if p.extra["part"] == "one" else 1.0 for p in parted.prompts])
    moved = replace(parted, values=parted.values * loud[:, None, None])
    fits = [ProbeAverage().fit(rows, clean=clean).probe_.directions for rows in (parted, moved)]
    assert torch.allclose(*fits, atol=1e-4)


def test_kinds_that_are_no_sum_over_questions_and_bare_rows_without_questions_are_refused(contrast, clean) -> None:
    with pytest.raises(DefectionError, match="linear in their questions' effects"):
        ProbeAverage((LogisticProbe(),)).fit(contrast, clean=clean)
    rng = np.random.default_rng(0)
    with pytest.raises(DefectionError, match="needs groups"):
        ProbeAverage().fit(rng.normal(size=(12, 5)), [0, 1] * 6, clean=rng.normal(size=(30, 5)))


def test_joined_sets_are_their_parts_texts_each_naming_its_set() -> None:
    joined, parts = (
        contrast_set("six+forty-sentence-carried"),
        [contrast_set(f"{n}-sentence-carried") for n in ("six", "forty")],
    )
    assert len(list(joined)) == len(joined) == sum(map(len, parts))
    assert [p.messages for p in joined] == [p.messages for part in parts for p in part]
    assert [p.id for p in joined] == [p.id for part in parts for p in part]
    assert {p.extra["part"] for p in joined} == {part.name for part in parts}
    assert joined.is_balanced
    assert not joined.study_only
    assert joined.fingerprint != contrast_set("forty+six-sentence-carried").fingerprint
    with pytest.raises(DefectionError, match="no contrast set 'sixty'"):
        contrast_set("six+sixty")


def test_residuals_put_together_are_the_parts_and_others_are_refused(contrast, clean) -> None:
    whole = joined_residuals([contrast.select([0, 1]), contrast.select([2, 3])])
    assert torch.equal(whole.values, contrast.values[:4])
    assert whole.ids == contrast.ids[:4]
    with pytest.raises(DefectionError, match="cannot be put together"):
        joined_residuals([contrast, replace(contrast, position="first-response")])
