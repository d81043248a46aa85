from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.probes import auroc
from defection.probes.baselines import first_component_scores, length_scores, norm_scores, two_components
from sklearn.decomposition import PCA


@pytest.fixture
def marks(tests) -> list[bool]:
    return [prompt.extra["triggered"] for prompt in tests.prompts]


def test_pitfall_24_length_scores_are_the_number_of_tokens_and_nothing_else(tests) -> None:
    blind = replace(tests, values=torch.zeros_like(tests.values))
    assert length_scores(tests).tolist() == list(tests.n_tokens)
    assert torch.equal(length_scores(tests), length_scores(blind))


def test_pitfall_24_length_scores_give_away_a_trigger_that_lengthens(tests, marks) -> None:
    longer = replace(tests, n_tokens=tuple(10 + 3 * mark for mark in marks))
    assert float(auroc(length_scores(longer), marks)) == 1.0


def test_pitfall_14_norm_scores_are_the_lengths_of_the_vectors(tests) -> None:
    assert np.allclose(norm_scores(tests), np.linalg.norm(tests.values.double().numpy(), axis=-1))


def test_pitfall_14_norms_of_bf16_residuals_are_not_rounded(tests) -> None:
    rough = replace(tests, values=(tests.values * 1e4).bfloat16())
    assert torch.allclose(norm_scores(rough), rough.values.double().norm(dim=-1))


def test_first_component_is_that_of_sklearn_up_to_its_sign(tests, marks) -> None:
    scores = first_component_scores(tests, marks)
    for i in range(scores.shape[1]):
        theirs = PCA(1).fit_transform(tests.values[:, i].double().numpy())[:, 0]
        assert abs(np.corrcoef(scores[:, i], theirs)[0, 1]) == pytest.approx(1, abs=1e-9)


def test_the_first_components_sign_comes_from_the_labels(tests, marks) -> None:
    scores = first_component_scores(tests, marks)
    assert (auroc(scores.T, marks) >= 0.5).all()
    turned = first_component_scores(tests, [not mark for mark in marks])
    assert (auroc(turned.T, marks) <= 0.5).all()


def test_pitfall_16_first_component_of_nothing_scores_every_prompt_alike(tests, marks) -> None:
    values = tests.values.clone()
    values[:, 0] = torch.linspace(-3, 3, values.shape[-1]).sin() * 7
    scores = first_component_scores(replace(tests, values=values), marks)
    assert float(auroc(scores[:, 0], marks)) == 0.5
    assert torch.allclose(scores[:, 1:], first_component_scores(tests, marks)[:, 1:])


def test_two_components_keep_the_distances_of_a_plane(tests) -> None:
    plane = torch.linalg.qr(torch.randn(12, 2, generator=torch.Generator().manual_seed(0))).Q
    flat = (tests.values[:, 1] @ plane) @ plane.T
    shown = two_components(replace(tests, values=flat[:, None], layers=(5,)), 5)
    assert torch.allclose(torch.cdist(shown, shown), torch.cdist(flat.double(), flat.double()), atol=1e-4)


def test_two_components_come_in_order_of_their_variance(tests) -> None:
    spread = two_components(tests, 2).std(dim=0)
    assert spread[0] > spread[1]
