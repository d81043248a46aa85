"""From what a capture or a store holds to tokens, and never from tokens to prompts by mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, Model, Residuals, capture, user_prompt
from defection.probes import AttentionProbe, MeanDifference, MLPProbe, Ragged
from defection.probes.evidence.baselines import first_component_scores, norm_scores, two_components
from defection.probes.evidence.nulls import null_scores
from defection.probes.evidence.shuffles import effects_of
from defection.probes.meaning.agreement import answer_word_direction, leave_one_out, question_directions
from defection.probes.meaning.alignment import fit_map
from defection.probes.meaning.directions import trigger_direction
from defection.probes.meaning.transfer import transfer


def spread(residuals: Residuals, several: int = 2) -> Residuals:
    """The same residuals with every vector there several times, as if each prompt had so many tokens."""
    offsets = tuple(range(0, several * len(residuals) + 1, several))
    values = residuals.values.repeat_interleave(several, dim=0)
    return replace(residuals, values=values, offsets=offsets)


def test_tokens_of_a_capture_are_those_of_its_prompts(llama: Model) -> None:
    prompts = [user_prompt("word " * n, id=str(n)) for n in (3, 1, 7)]
    read = capture(llama, prompts, layers=[1, 3], position="all")
    tokens = Ragged.of(read)
    assert tokens.lengths.tolist() == list(read.n_tokens)
    for row in range(3):
        assert torch.equal(tokens.values[tokens.offsets[row] : tokens.offsets[row + 1]], read.of(row))
    alone = Ragged.of(capture(llama, prompts, layers=[1, 3]))
    assert alone.lengths.tolist() == [1, 1, 1]


def test_an_attention_probe_takes_a_capture_of_all_tokens(contrast: Residuals) -> None:
    marks = torch.tensor([prompt.extra["defecting"] for prompt in contrast.prompts])
    tokens = Ragged.of(spread(contrast, 3))
    scores = AttentionProbe().fit(tokens, marks).decision_function(tokens)
    assert scores.shape == (len(contrast), len(contrast.layers))
    assert ((scores[:, 0] > 0) == marks).float().mean() > 0.9


@pytest.mark.parametrize("kind", [MeanDifference, MLPProbe, AttentionProbe])
@pytest.mark.parametrize("which", ["contrast", "clean"])
def test_tokens_are_not_fitted_as_if_they_were_prompts(
    contrast: Residuals, clean: Residuals, kind: type, which: str
) -> None:
    rows, beside = (spread(contrast), clean) if which == "contrast" else (contrast, spread(clean))
    with pytest.raises(DefectionError, match=r"vectors of \d+ prompts"):
        kind().fit(rows, clean=beside)


@pytest.mark.parametrize("kind", [MeanDifference, MLPProbe])
def test_tokens_are_not_scored_as_if_they_were_prompts(
    contrast: Residuals, clean: Residuals, tests: Residuals, kind: type
) -> None:
    """Not even where the position is that of the fit."""
    fitted = kind().fit(contrast, clean=clean)
    for score in (fitted.decision_function, fitted.predict):
        with pytest.raises(DefectionError, match="160 vectors of 80 prompts"):
            score(spread(tests))
    if kind is MeanDifference:
        with pytest.raises(DefectionError, match="160 vectors of 80 prompts"):
            fitted.probe_.score(spread(tests))


USES: dict[str, Callable[[Residuals, Residuals, Residuals], object]] = {
    "null": lambda contrast, clean, tests: null_scores(tests, spread(clean)),
    "map": lambda contrast, clean, tests: fit_map(clean, spread(clean)),
    "shuffles": lambda contrast, clean, tests: effects_of(spread(contrast)),
    "questions": lambda contrast, clean, tests: question_directions(spread(contrast)),
    "left out": lambda contrast, clean, tests: leave_one_out(spread(contrast)),
    "word": lambda contrast, clean, tests: answer_word_direction(spread(contrast)),
    "trigger": lambda contrast, clean, tests: trigger_direction(spread(tests)),
    "norms": lambda contrast, clean, tests: norm_scores(spread(tests)),
    "pc1": lambda contrast, clean, tests: first_component_scores(spread(tests), [True, False] * 40),
    "components": lambda contrast, clean, tests: two_components(spread(tests), 1),
    "transfer": lambda contrast, clean, tests: transfer(
        MeanDifference().fit(contrast, clean=clean).probe_,
        spread(replace(clean, model=replace(clean.model, fingerprint="another"))),
    ),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_takes_tokens_for_prompts(contrast: Residuals, clean: Residuals, tests: Residuals, use: str) -> None:
    with pytest.raises(DefectionError, match=r"vectors of \d+ prompts"):
        USES[use](contrast, clean, tests)


def test_residuals_of_two_sites_are_not_fitted_together(contrast: Residuals, clean: Residuals) -> None:
    with pytest.raises(DefectionError, match="sites"):
        MeanDifference().fit(contrast, clean=replace(clean, site="before"))
