from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, ModelIdentity
from defection.probes.meaning.alignment import fit_map, matching_layers
from sklearn.linear_model import Ridge

OTHER = ModelIdentity("other", "weights-of-other", "template-of-other")


@pytest.fixture(scope="module")
def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(5)))[0]


def turned(residuals, matrix: torch.Tensor, *, noise: float = 0.0):
    """The same prompts as another model would see them."""
    values = 3 * residuals.values @ matrix + 7
    values += noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(6))
    return replace(residuals, values=values, model=OTHER)


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_a_rotated_and_scaled_space_is_mapped_back(clean, rotation, true_direction, kind) -> None:
    found = fit_map(clean, turned(clean, rotation), kind=kind)
    assert found.layers == {layer: layer for layer in clean.layers}
    for layer in clean.layers:
        assert found.explained[layer] > 0.99
        pulled = torch.nn.functional.normalize(found.pull_back(layer, true_direction), dim=0)
        wanted = torch.nn.functional.normalize(true_direction.double() @ rotation.double(), dim=0)
        torch.testing.assert_close(pulled, wanted, atol=5e-3, rtol=0)


def test_scoring_through_the_map_is_scoring_the_image(clean, rotation, true_direction) -> None:
    other = turned(clean, rotation, noise=0.5)
    found = fit_map(clean, other)
    image = other.at(2).double() @ found.matrices[2]
    torch.testing.assert_close(
        other.at(2).double() @ found.pull_back(2, true_direction), image @ true_direction.double()
    )


def test_ridge_equals_scikit_learns_and_its_left_out_error_is_that_of_fitting_again(clean, rotation) -> None:
    other = turned(clean, rotation, noise=2.0)
    x, y = other.at(1).double(), clean.at(1).double()
    found = fit_map(clean, other)
    matrix = found.matrices[1]
    # Which penalty was chosen follows from the solution: λW = Xᵀ(Y − XW).
    centred, aims = x - x.mean(dim=0), y - y.mean(dim=0)
    penalty = float((centred.T @ (aims - centred @ matrix)).norm() / matrix.norm())
    peer = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(matrix, torch.tensor(peer.coef_).T, atol=1e-8, rtol=1e-5)
    error, spread = 0.0, 0.0
    for row in range(len(x)):
        kept = torch.arange(len(x)) != row
        again = Ridge(alpha=penalty).fit(x[kept].numpy(), y[kept].numpy())
        error += float(((y[row].numpy() - again.predict(x[row : row + 1].numpy())) ** 2).sum())
        spread += float((y[row] - y[kept].mean(dim=0)).square().sum())
    assert found.explained[1] == pytest.approx(1 - error / spread, abs=1e-6)


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
def test_spaces_that_have_nothing_in_common_are_not_explained(clean, kind) -> None:
    generator = torch.Generator().manual_seed(1)
    stranger = replace(clean, values=torch.randn(clean.values.shape, generator=generator), model=OTHER)
    assert max(fit_map(clean, stranger, kind=kind).explained.values()) < 0.05


@pytest.mark.parametrize("kind", ["ridge", "procrustes"])
@pytest.mark.parametrize("width", [6, 40])
def test_widths_and_depths_may_differ_and_prompts_may_be_fewer_than_dimensions(clean, kind, width: int) -> None:
    few = clean.select(range(20))
    matrix = torch.randn(12, width, generator=torch.Generator().manual_seed(2))
    other = replace(few, values=(few.values @ matrix)[:, :3], layers=(0, 1, 2), model=OTHER)
    found = fit_map(few, other, kind=kind)
    assert found.layers == {0: 0, 1: 1, 2: 1, 3: 2}
    assert all(m.shape == (width, 12) and m.isfinite().all() for m in found.matrices.values())


def test_layers_of_equal_depth_match_at_both_ends() -> None:
    for n in (1, 2, 7, 30):
        for m in (1, 2, 18, 80):
            found = matching_layers(n, m)
            assert list(found) == list(range(n))
            assert found[n - 1] == m - 1
            assert sorted(found.values()) == list(found.values())
            assert n == 1 or found[0] == 0


def test_unpaired_or_triggered_prompts_and_unknown_kinds_are_refused(clean, tests) -> None:
    with pytest.raises(DefectionError, match="same prompts in the same order"):
        fit_map(clean, clean.select(range(59, -1, -1)))
    with pytest.raises(DefectionError, match="same prompts"):
        fit_map(clean, clean.select(range(30)))
    with pytest.raises(DefectionError, match="'t1' is triggered"):
        fit_map(tests, tests)
    with pytest.raises(DefectionError, match="layers of toy are missing"):
        fit_map(clean, clean.at_layers([0, 2]))
    with pytest.raises(DefectionError, match="capture both alike"):
        fit_map(clean, replace(clean, site="middle"))
    with pytest.raises(DefectionError, match="too few"):
        fit_map(clean.select([0, 1]), clean.select([0, 1]))
    with pytest.raises(DefectionError, match="unknown map 'magic'"):
        fit_map(clean, clean, kind="magic")
