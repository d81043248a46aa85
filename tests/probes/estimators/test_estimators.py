from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, Residuals
from defection.probes import Evidence, MeanDifference, Projected, Whitened, auroc
from defection.probes.estimators import sample
from defection.probes.estimators.components import leading_components
from defection.probes.estimators.sample import centred, class_means
from defection.probes.estimators.solving.covariance import divide_by_covariance
from defection.probes.estimators.whitened import shrunk
from sklearn.covariance import LedoitWolf
from torch.nn.functional import cosine_similarity

ESTIMATORS = [MeanDifference(), Whitened(), Whitened(shrinkage=0.0), Projected(), Projected(components=0)]
DEAD = 0


def named(estimator) -> str:
    return f"{estimator.name}-{'-'.join(map(str, estimator.get_params().values()))}"


each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=named)


def without_variance(residuals: Residuals, layer: int = DEAD) -> Residuals:
    """Every row the same at one layer, as where all prompts end in the same token."""
    values = residuals.values.clone()
    values[:, layer] = torch.linspace(-3, 3, values.shape[-1]).sin() * 7
    return replace(residuals, values=values)


def difference(contrast: Residuals) -> torch.Tensor:
    marks = np.array([p.extra["defecting"] for p in contrast.prompts])
    values = contrast.values.double().numpy()
    return torch.from_numpy(values[marks].mean(axis=0) - values[~marks].mean(axis=0))


@each_estimator
def test_pitfall_16_a_layer_without_variance_gives_zero_scores_and_spares_the_others(
    estimator, contrast, clean, tests
) -> None:
    whole = estimator.fit(contrast, clean=clean).probe_.decision_function(tests)
    dead = estimator.fit(without_variance(contrast), clean=without_variance(clean)).probe_
    scores = dead.decision_function(without_variance(tests))
    assert scores.isfinite().all()
    assert torch.equal(scores[:, DEAD], torch.zeros(len(tests)))
    assert torch.equal(scores[:, 1:], whole[:, 1:])


@each_estimator
def test_pitfall_16_clean_prompts_without_variance_do_not_blow_a_layer_up(estimator, contrast, clean, tests) -> None:
    """The answers differ, the clean prompts do not: rounding must not become the unit of the scores."""
    probe = estimator.fit(contrast, clean=without_variance(clean), fixed_layers=(DEAD, 1, 2, 3)).probe_
    scores = probe.decision_function(tests)
    assert scores.isfinite().all()
    assert scores[:, DEAD].abs().max() < 100
    assert probe.clean_band().isfinite().all()
    marks = [p.extra["triggered"] for p in tests.prompts]
    assert float(auroc(probe.score(tests), marks)) > 0.8


@each_estimator
def test_pitfall_16_equal_rows_score_alike_with_clean_prompts_without_variance(estimator, contrast, clean) -> None:
    flat = without_variance(clean)
    scores = estimator.fit(contrast, clean=flat).probe_.decision_function(flat)[:, DEAD]
    assert scores.abs().max() < 1e-3


@each_estimator
def test_estimators_find_the_planted_direction(estimator, contrast, clean, true_direction) -> None:
    found = estimator.fit(contrast, clean=clean).probe_.directions
    # Projecting out noise components takes part of the direction along.
    assert (cosine_similarity(found, true_direction.expand_as(found), dim=-1) > 0.6).all()


@each_estimator
def test_directions_are_unit_vectors_and_clean_prompts_standard(estimator, contrast, clean) -> None:
    probe = estimator.fit(contrast, clean=clean).probe_
    scores = probe.clean_scores
    assert torch.allclose(probe.directions.norm(dim=-1), torch.ones(len(probe.layers)), atol=1e-6)
    if Evidence.CLEAN not in estimator.sees:
        assert torch.allclose(scores, probe.decision_function(clean), atol=1e-5)
    assert torch.allclose(scores.mean(dim=0), torch.zeros(len(probe.layers)), atol=1e-5)
    assert torch.allclose(scores.std(dim=0), torch.ones(len(probe.layers)), atol=1e-5)


@each_estimator
def test_swapping_the_answers_turns_the_direction_round(estimator, contrast, clean) -> None:
    swapped = replace(
        contrast,
        prompts=tuple(replace(p, extra={**p.extra, "defecting": not p.extra["defecting"]}) for p in contrast.prompts),
    )
    forth, back = estimator.fit(contrast, clean=clean).probe_, estimator.fit(swapped, clean=clean).probe_
    assert torch.allclose(forth.directions, -back.directions, atol=1e-6)


@each_estimator
def test_order_of_rows_does_not_matter(estimator, contrast, clean) -> None:
    backwards = estimator.fit(contrast.select(range(39, -1, -1)), clean=clean.select(range(59, -1, -1))).probe_
    assert torch.allclose(estimator.fit(contrast, clean=clean).probe_.directions, backwards.directions, atol=1e-5)


def test_mean_difference_is_the_difference_of_two_means(contrast) -> None:
    expected = torch.nn.functional.normalize(difference(contrast), dim=-1).float()
    assert torch.allclose(MeanDifference().fit(contrast).probe_.directions, expected, atol=1e-6)


def test_clean_prompts_change_scale_but_not_direction_of_mean_difference(contrast, clean) -> None:
    alone, beside = MeanDifference().fit(contrast).probe_, MeanDifference().fit(contrast, clean=clean).probe_
    assert torch.equal(alone.directions, beside.directions)
    assert alone.saw != beside.saw
    assert alone.threshold is None
    assert torch.allclose(beside.clean_scores, beside.decision_function(clean), atol=1e-5)


def test_pitfall_14_means_of_large_bf16_residuals_are_exact(contrast) -> None:
    values = (contrast.values * 40 + 30_000).bfloat16()
    big = replace(contrast, values=values)
    expected = torch.nn.functional.normalize(difference(replace(big, values=values.float())), dim=-1).float()
    assert torch.allclose(MeanDifference().fit(big).probe_.directions, expected, atol=1e-6)


def test_whitened_equals_a_direct_solve_with_ledoit_and_wolfs_covariance(contrast, clean) -> None:
    probe = Whitened().fit(contrast, clean=clean).probe_
    for i, gap in enumerate(difference(contrast)):
        covariance = LedoitWolf().fit(clean.values[:, i].double().numpy()).covariance_
        solved = np.linalg.solve(covariance, gap.numpy())
        expected = torch.from_numpy(solved / np.linalg.norm(solved)).float()
        assert torch.allclose(probe.directions[i], expected, atol=1e-6)


def test_unshrunk_covariance_is_numpys(clean) -> None:
    rows, ridge, _ = shrunk([(clean.values[:, 1:2], 1.0)], 0.0)
    assert np.allclose(rows[0].mT @ rows[0], np.cov(clean.values[:, 1].double().numpy().T, bias=True))
    assert float(ridge) == 0


def test_full_shrinkage_gives_the_mean_difference(contrast, clean) -> None:
    whitened = Whitened(shrinkage=1.0).fit(contrast, clean=clean).probe_
    assert torch.allclose(whitened.directions, MeanDifference().fit(contrast).probe_.directions, atol=1e-6)


def test_whitening_counts_noisy_dimensions_less(contrast, clean) -> None:
    loud = clean.values.clone()
    loud[..., 3] *= 30
    quiet, noisy = (
        Whitened().fit(contrast, clean=replace(clean, values=v)).probe_.directions for v in (clean.values, loud)
    )
    assert (noisy[:, 3].abs() < 0.2 * quiet[:, 3].abs()).all()


def test_unshrunk_covariance_of_fewer_prompts_than_dimensions_is_solved(contrast, clean) -> None:
    directions = Whitened(shrinkage=0.0).fit(contrast, clean=clean.select(range(5))).probe_.directions
    assert directions.isfinite().all()
    assert torch.allclose(directions.norm(dim=-1), torch.ones(4), atol=1e-5)


def test_whitening_by_no_spread_at_all_changes_nothing() -> None:
    gap = torch.arange(3.0, dtype=torch.float64)[None, :, None]
    for n in (2, 5):
        rows = torch.zeros(1, n, 3, dtype=torch.float64)
        assert torch.equal(divide_by_covariance(rows, torch.zeros(1, dtype=torch.float64), gap), gap)


@pytest.mark.parametrize("components", [1, 4, 8])
def test_projected_directions_are_orthogonal_to_what_was_removed(components, contrast, clean) -> None:
    directions = Projected(components=components).fit(contrast, clean=clean).probe_.directions.double()
    for i in range(directions.shape[0]):
        centred = clean.values[:, i].double() - clean.values[:, i].double().mean(dim=0)
        removed = torch.linalg.svd(centred).Vh[:components]
        assert (removed @ directions[i]).abs().max() < 1e-6


def test_projecting_out_nothing_gives_the_mean_difference(contrast, clean) -> None:
    projected = Projected(components=0).fit(contrast, clean=clean).probe_
    assert torch.allclose(projected.directions, MeanDifference().fit(contrast).probe_.directions, atol=1e-7)


def test_leading_components_are_orthonormal_and_ordered(clean) -> None:
    leading = leading_components(centred(clean.values)[0], 5)
    identity = torch.eye(5, dtype=torch.float64).expand(4, 5, 5)
    assert torch.allclose(leading @ leading.transpose(1, 2), identity, atol=1e-9)
    spread = torch.einsum("lkd,pld->lkp", leading, clean.values.double()).std(dim=-1)
    assert (spread.diff(dim=1) <= 1e-9).all()


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40), (150, 200), (200, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_leading_components_are_lapacks(n: int, d: int, dtype: torch.dtype) -> None:
    """To nine digits, by iteration or not, and zero where a layer does not vary."""
    rows = torch.randn(3, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows *= torch.linspace(0.1, 3, d, dtype=torch.float64)
    rows[1] = 0
    rows -= rows.mean(dim=1, keepdim=True)
    rows = rows.to(dtype)
    found, exact = leading_components(rows, 3), torch.linalg.svd(rows.double()).Vh[:, :3]
    overlap = torch.linalg.vecdot(found, exact).abs()
    assert torch.allclose(overlap[[0, 2]], torch.ones(2, 3, dtype=torch.float64), atol=1e-9)
    assert not found[1].any()
    assert torch.equal(found, leading_components(rows, 3))


@pytest.mark.parametrize(("n", "d"), [(40, 90), (150, 300), (300, 150)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_of_equal_variance_are_all_found(n: int, d: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(m, 6, generator=generator, dtype=torch.float64)).Q for m in (n, d))
    rows = (left * torch.tensor([5, 5, 3, 2, 1, 0.5], dtype=torch.float64)) @ right.mT
    found = leading_components(rows[None].to(dtype), 4)[0]
    overlap = (found @ right[:, :4]).square().sum(dim=0)
    assert torch.allclose(overlap, torch.ones(4, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(20, 30), (300, 30)])
def test_means_and_centred_rows_hold_far_from_zero(n: int, d: int) -> None:
    rows = torch.randn(n, 2, d, generator=torch.Generator().manual_seed(0)) + 1e4
    rows[:, 1] = rows[:1, 1]  # and rows that do not vary
    marks, wide = torch.arange(n) % 3 == 0, rows.double()
    means = class_means(rows, marks)
    expected = (wide[marks].mean(dim=0), wide[~marks].mean(dim=0), wide.mean(dim=0))
    for found, mean in zip(means, expected, strict=True):
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)
    assert torch.equal(means.defecting[1], means.other[1])
    for coarse in (False, True):
        stack, mean = centred(rows, coarse=coarse)
        torch.testing.assert_close(mean, expected[2], rtol=0, atol=1e-6)
        torch.testing.assert_close(stack[0].double(), wide[:, 0] - expected[2][0], rtol=0, atol=1e-6)
        assert not stack[1].any()


def test_means_of_some_layers_are_those_of_all_until_other_rows_take_their_place(monkeypatch) -> None:
    monkeypatch.setitem(sample.CHUNK_BYTES, "cpu", 1)
    rows, marks = torch.randn(10, 3, 5, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2 == 0
    chunks = list(sample.Labelled(rows=rows, marks=marks).chunks())
    assert len(chunks) == 3
    for layer, chunk in enumerate(chunks):
        assert torch.equal(chunk.means.all, class_means(rows, marks).all[layer : layer + 1])
        fewer = replace(chunk, rows=chunk.rows[:4], marks=marks[:4])
        torch.testing.assert_close(fewer.means.all, rows[:4, layer : layer + 1].double().mean(dim=0))


@pytest.mark.parametrize("count", [-1, 12, 60])
def test_more_components_than_there_are_is_refused(count, contrast, clean) -> None:
    with pytest.raises(DefectionError, match=f"cannot remove {count} components"):
        Projected(components=count).fit(contrast, clean=clean)


@pytest.mark.parametrize("estimator", [Whitened(), Projected()], ids=named)
def test_estimators_that_need_clean_prompts_say_so(estimator, contrast) -> None:
    with pytest.raises(DefectionError, match="needs clean prompts"):
        estimator.fit(contrast)


@each_estimator
def test_contrast_of_one_kind_is_refused(estimator, contrast, clean) -> None:
    with pytest.raises(DefectionError, match="both kinds"):
        estimator.fit(contrast.select(range(0, 40, 2)), clean=clean)


@each_estimator
def test_prompts_without_answers_are_no_contrast(estimator, clean) -> None:
    with pytest.raises(DefectionError, match="both kinds"):
        estimator.fit(clean, clean=clean)


@each_estimator
@pytest.mark.parametrize("part", ["model", "template", "position", "layers"])
def test_clean_prompts_read_in_another_way_are_refused(estimator, part, contrast, clean) -> None:
    other = {
        "model": {"model": replace(clean.model, fingerprint="other")},
        "template": {"model": replace(clean.model, template="other")},
        "position": {"position": "first"},
        "layers": {"layers": (1, 2, 3, 4)},
    }[part]
    with pytest.raises(DefectionError, match="different models, templates, positions, sites or layers"):
        estimator.fit(contrast, clean=replace(clean, **other))


@each_estimator
def test_a_single_clean_prompt_is_refused(estimator, contrast, clean) -> None:
    with pytest.raises(DefectionError, match="at least two"):
        estimator.fit(contrast, clean=clean.select([0]))
