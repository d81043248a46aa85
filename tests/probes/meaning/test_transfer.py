from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, ModelIdentity
from defection.probes import MeanDifference, Whitened, auroc
from defection.probes.meaning.alignment import fit_map
from defection.probes.meaning.transfer import Target, transfer, transfer_matrix

OTHER = ModelIdentity("other", "weights-of-other", "template-of-other")
BAND = (1, 2)


@pytest.fixture
def here(clean, tests, labels) -> Target:
    return Target(clean, tests, labels)


def elsewhere(target: Target, change) -> Target:
    """The same prompts read with another model."""
    read = []
    for residuals in (target.clean, target.tests):
        values = change(residuals.values)
        read.append(replace(residuals, values=values, layers=tuple(range(values.shape[1])), model=OTHER))
    return Target(*read, target.labels)


@pytest.fixture
def probe(contrast, clean):
    return MeanDifference().fit(contrast, clean=clean, fixed_layers=BAND).probe_


def test_normal_scoring_refuses_what_a_transfer_is_asked_for(probe, here) -> None:
    other = elsewhere(here, lambda values: values + 1)
    with pytest.raises(DefectionError, match="cannot score other"):
        probe.score(other.tests)
    carried = transfer(probe, other.clean)
    assert carried.score(other.tests).shape == (80,)
    assert carried.parameters["transferred_from"]["name"] == "toy"
    with pytest.raises(DefectionError, match="cannot score toy"):
        carried.score(here.tests)


def test_the_diagonal_equals_normal_scoring(contrast, clean, here, labels) -> None:
    for estimator in (MeanDifference(), Whitened()):
        probe = estimator.fit(contrast, clean=clean, fixed_layers=BAND).probe_
        rows = transfer_matrix({"toy": probe}, {"toy": here})
        for row in rows:
            part = here.tests.select(range(40) if row.test_set == "first" else range(40, 80))
            marks = [labels[p.id] for p in part.prompts]
            assert row.auroc == float(auroc(probe.score(part, BAND), marks))
            assert row.auroc_low <= row.auroc <= row.auroc_high
            assert (row.n_positive, row.n_negative, row.mapped) == (20, 20, "")
        assert {(row.layer, row.test_set) for row in rows} == {("1-2", "first"), ("1-2", "second")}


def test_a_model_that_differs_by_scale_and_shift_scores_the_same(probe, here) -> None:
    """Its clean prompts take both out again."""
    other = elsewhere(here, lambda values: 5 * values - 3)
    torch.testing.assert_close(
        transfer(probe, other.clean).score(other.tests), probe.score(here.tests), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_a_rotated_family_is_reached_through_a_map_and_only_through_it(probe, here, kind) -> None:
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5)))[0]
    other = elsewhere(here, lambda values: values @ turn)
    maps = {("toy", "other"): fit_map(here.clean, other.clean, kind=kind)}
    at_home = transfer_matrix({"toy": probe}, {"toy": here})
    straight = transfer_matrix({"toy": probe}, {"other": other})
    mapped = transfer_matrix({"toy": probe}, {"other": other}, maps)
    for home, lost, found in zip(at_home, straight, mapped, strict=True):
        assert found.auroc == pytest.approx(home.auroc, abs=0.02)
        assert lost.auroc < home.auroc - 0.1
        assert (lost.mapped, found.mapped) == ("", kind)


def test_a_family_of_other_width_and_depth_needs_a_map_and_gets_the_band_of_equal_depth(probe, here) -> None:
    wider = torch.randn(12, 20, generator=torch.Generator().manual_seed(5))
    deeper = elsewhere(here, lambda values: (values @ wider).repeat_interleave(2, dim=1))
    clean, tests = deeper.clean, deeper.tests
    with pytest.raises(DefectionError, match=r"width 12\) does not fit other .*width 20"):
        transfer(probe, clean)
    carried = transfer(probe, clean, fit_map(here.clean, clean))
    assert carried.layers == (0, 2, 5, 7)
    assert carried.fixed_layers == (2, 5)
    marks = [here.labels[p.id] for p in tests.prompts]
    assert float(auroc(carried.score(tests), marks)) > 0.8


def test_a_map_for_other_models_and_triggered_clean_prompts_are_refused(probe, here) -> None:
    other = elsewhere(here, lambda values: values + 1)
    third = replace(other.clean, model=ModelIdentity("third", "weights-of-third", "template-of-third"))
    with pytest.raises(DefectionError, match="leads to other, not to third"):
        transfer(probe, third, fit_map(here.clean, other.clean))
    with pytest.raises(DefectionError, match="triggered prompt"):
        transfer(probe, other.tests)
    for change in ({"position": "mean:0:4"}, {"site": "middle"}):
        with pytest.raises(DefectionError, match="capture them as the probe reads"):
            transfer(probe, replace(other.clean, **change))
    with pytest.raises(DefectionError, match="'t0' has no label"):
        transfer_matrix({"toy": probe}, {"other": replace(other, labels={})})


def test_a_carried_probe_can_be_saved_and_says_where_it_comes_from(probe, here, tmp_path) -> None:
    from defection.probes import load_probe

    carried = transfer(probe, elsewhere(here, lambda values: values + 1).clean)
    carried.save(tmp_path / "p.safetensors")
    again = load_probe(tmp_path / "p.safetensors")
    assert again.model == OTHER
    assert again.parameters["transferred_from"]["fingerprint"] == "weights-of-toy"
