from __future__ import annotations

import pytest
import torch
from defection.probes.estimators.solving.lbfgs import minimise


def bowls(count: int = 4, size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive definite matrices of very different conditions, and where each bowl has its bottom."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=torch.float64)).Q
    spread = torch.logspace(0, 3, size, dtype=torch.float64) ** torch.linspace(0, 1, count)[:, None]
    bottom = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return turn @ torch.diag_embed(spread) @ turn.mT, bottom


def losses_of(matrices: torch.Tensor, bottom: torch.Tensor):
    return lambda points: torch.einsum("bi,bij,bj->b", points - bottom, matrices, points - bottom)


def test_bowls_are_descended_to_the_bottom() -> None:
    matrices, bottom = bowls()
    found = minimise(losses_of(matrices, bottom), torch.zeros_like(bottom), tolerance=1e-9)
    assert found.converged.all()
    torch.testing.assert_close(found.point, bottom, atol=1e-6, rtol=0)


def test_rosenbrocks_valley() -> None:
    def valley(points: torch.Tensor) -> torch.Tensor:
        return (1 - points[:, 0]) ** 2 + 100 * (points[:, 1] - points[:, 0] ** 2) ** 2

    start = torch.tensor([[-1.2, 1.0], [3.0, -4.0], [0.0, 0.0]], dtype=torch.float64)
    found = minimise(valley, start, tolerance=1e-9)
    torch.testing.assert_close(found.point, torch.ones(3, 2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_problems_of_a_batch_do_not_influence_one_another() -> None:
    matrices, bottom = bowls()
    together = minimise(losses_of(matrices, bottom), torch.zeros_like(bottom), tolerance=1e-9)
    for i in range(len(bottom)):
        cut = slice(i, i + 1)
        alone = minimise(losses_of(matrices[cut], bottom[cut]), torch.zeros_like(bottom[cut]), tolerance=1e-9)
        torch.testing.assert_close(alone.point, together.point[cut], atol=1e-7, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_pitfall_22_the_best_point_is_kept_even_when_later_ones_are_worse(steps) -> None:
    """A loss that gets worse each time it is asked makes every later point look worse than the first."""
    asked = []

    def souring(points: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return points.square().sum(dim=1) * 1e-3 + len(asked)

    start = torch.ones(2, 3, dtype=torch.float64)
    found = minimise(souring, start, max_steps=steps)
    assert torch.equal(found.point, start)
    assert torch.equal(found.loss, torch.full((2,), 1.003, dtype=torch.float64))


def test_pitfall_22_what_is_kept_is_a_copy() -> None:
    start = torch.ones(1, 2, dtype=torch.float64)
    found = minimise(lambda points: points.square().sum(dim=1), start)
    assert torch.equal(start, torch.ones(1, 2, dtype=torch.float64))
    assert found.point.abs().max() < 1e-5
