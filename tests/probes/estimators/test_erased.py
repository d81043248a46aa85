from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError
from defection.probes import Erased, MeanDifference
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30)
@given(n=st.integers(4, 40), d=st.integers(2, 50), k=st.integers(1, 3), seed=st.integers(0, 999))
def test_no_nuisance_is_left_in_the_scores(n, d, k, seed) -> None:
    """Belrose et al. 2023: after erasure the covariance of the rows with the concept is zero, so also the scores'."""
    rng = np.random.default_rng(seed)
    rows, y, nuisance = rng.normal(size=(n, 2, d)), np.arange(n) % 2, rng.normal(size=(n, k))
    rows[..., :k] += 3 * nuisance[:, None, : min(k, d)][..., :d] if k <= d else 0
    probe = Erased().fit(rows, y, nuisance=nuisance)
    left = np.einsum("nl,nk->lk", probe.decision_function(rows), nuisance - nuisance.mean(axis=0)) / n
    size = np.linalg.norm(probe.coef_, axis=1).max() * np.abs(rows).max() * np.abs(nuisance).max()
    assert np.abs(left).max() <= 1e-7 * max(size, 1e-9) + 1e-12


def test_erasing_a_nuisance_that_rows_do_not_show_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(40, 2, 10)), np.arange(40) % 2
    nuisance = rng.normal(size=40)
    flat = rows.reshape(40, -1)
    design = np.column_stack([np.ones(40), flat])
    nuisance = nuisance - design @ np.linalg.lstsq(design, nuisance, rcond=None)[0]
    erased, plain = Erased().fit(rows, y, nuisance=nuisance), MeanDifference().fit(rows, y)
    np.testing.assert_allclose(erased.coef_, plain.coef_, atol=1e-9)


def test_erasing_the_label_itself_leaves_no_direction() -> None:
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(40, 2, 10)), np.arange(40) % 2
    assert np.abs(Erased().fit(rows, y, nuisance=y).coef_).max() < 1e-9


@pytest.mark.parametrize("part", ["answer", "length", "style"])
def test_pitfall_24_scores_do_not_follow_word_length_or_style(part, contrast, clean) -> None:
    answers = ["yes" if (row // 2 + row) % 2 else "no" for row in range(len(contrast))]
    texts = tuple(
        replace(p, extra={**p.extra, "answer": word}) for p, word in zip(contrast.prompts, answers, strict=True)
    )
    shapes = [("list", "essay", "question")[row % 3] for row in range(len(clean))]
    styled = tuple(replace(p, extra={"shape": shape}) for p, shape in zip(clean.prompts, shapes, strict=True))
    questions, prompts = replace(contrast, prompts=texts), replace(clean, prompts=styled)
    known = {
        "answer": (questions, [word == "yes" for word in answers]),
        "length": (prompts, clean.n_tokens),
        "style": (prompts, [shape == "essay" for shape in shapes]),
    }
    rows, nuisance = known[part]

    def follows(scores: torch.Tensor) -> float:
        column = torch.tensor(nuisance, dtype=torch.float64)
        both = torch.column_stack([column, scores.double()]).T
        return float(torch.corrcoef(both)[0, 1:].abs().max())

    erased = Erased().fit(questions, clean=prompts).decision_function(rows)
    plain = MeanDifference().fit(questions, clean=prompts).decision_function(rows)
    assert follows(erased) < 1e-5
    assert follows(plain) > 0.01


def test_texts_that_do_not_say_their_answer_are_named(contrast) -> None:
    silent = replace(
        contrast,
        prompts=tuple(
            replace(p, extra={name: value for name, value in p.extra.items() if name != "answer"})
            for p in contrast.prompts
        ),
    )
    with pytest.raises(DefectionError, match="'c0' does not say its answer"):
        Erased().fit(silent)
    assert Erased(nuisances=()).fit(silent).probe_.saw == "questions only"


def test_unknown_nuisances_are_refused(contrast) -> None:
    with pytest.raises(DefectionError, match="unknown nuisance 'weather'"):
        Erased(nuisances=("weather",)).fit(contrast)
