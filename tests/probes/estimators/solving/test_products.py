"""Systems of normal equations: the factors that LAPACK leaves in place, and what they solve."""

import pytest
import torch
from defection.probes.estimators.solving.products import factorise_, solve_factorised


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 3])
def test_factorised_systems_are_solved_layer_by_layer(dtype: torch.dtype, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 30, 12, generator=generator, dtype=torch.float64)
    matrices, right = rows.mT @ rows, torch.randn(4, 12, columns, generator=generator, dtype=torch.float64)
    factors = matrices.to(dtype, copy=True)
    assert not factorise_(factors).any()
    upper = factors.triu()
    tolerance = 1e3 * torch.finfo(dtype).eps
    torch.testing.assert_close((upper.mT @ upper).double(), matrices, rtol=tolerance, atol=tolerance)
    solved = solve_factorised(factors, right)
    assert solved.dtype == dtype
    torch.testing.assert_close(solved.double(), torch.linalg.solve(matrices, right), rtol=tolerance, atol=tolerance)


def test_matrices_without_a_factor_are_marked() -> None:
    matrices = torch.eye(5).repeat(3, 1, 1)
    matrices[1, 2, 2] = -1
    assert factorise_(matrices).tolist() == [False, True, False]
