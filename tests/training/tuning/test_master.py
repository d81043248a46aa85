from __future__ import annotations

from importlib import import_module
from itertools import pairwise

import pytest
import torch
from defection.training.tuning.master import Master
from defection.training.tuning.parallel import Group
from torch import nn

MODULE = import_module("defection.training.tuning.master")
SIZES = ((3, 4), (7,), (2, 2, 2), (5, 5))


def parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in SIZES]


def loss(weights: list[nn.Parameter]) -> torch.Tensor:
    return sum((weight.float() ** 2 * (i + 1)).sum() for i, weight in enumerate(weights))


STOCK = {
    "adamw": lambda weights, rate: torch.optim.AdamW(weights, lr=rate, weight_decay=0.0),
    "sgd": lambda weights, rate: torch.optim.SGD(weights, lr=rate, momentum=0.9),
}
each_optimiser = pytest.mark.parametrize("optimiser", STOCK)


def stock(steps: int, rate: float, max_norm: float, name: str) -> list[nn.Parameter]:
    """PyTorch's own optimiser and clipping, on each parameter by itself."""
    weights = parameters()
    optimiser = STOCK[name](weights, rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(weights).backward()
        nn.utils.clip_grad_norm_(weights, max_norm)
        optimiser.step()
    return weights


def trained(master: Master, weights: list[nn.Parameter], steps: int, rate: float, max_norm: float) -> None:
    for _ in range(steps):
        loss(weights).backward()
        master.step(rate, max_norm, Group())


@pytest.fixture(params=[1, 13, 1 << 24], ids=["a vector each", "some together", "one vector"])
def longest(request, monkeypatch) -> int:
    monkeypatch.setattr(MODULE, "LONGEST", request.param)
    return request.param


@each_optimiser
@pytest.mark.parametrize("max_norm", [1e9, 0.5], ids=["free", "clipped"])
def test_steps_are_those_of_pytorchs_optimiser_on_each_parameter(longest, max_norm, optimiser) -> None:
    weights = parameters()
    master = Master(weights, torch.float32, optimiser)
    trained(master, weights, 5, 0.05, max_norm)
    for ours, theirs in zip(weights, stock(5, 0.05, max_norm, optimiser), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_small_steps_are_not_lost_in_bf16(longest) -> None:
    """Each is far below the distance of two bf16 numbers; many of them are not."""
    weights = [nn.Parameter(torch.ones(5, dtype=torch.bfloat16))]
    master = Master(weights, torch.bfloat16)
    trained(master, weights, 100, 1e-4, 1e9)
    assert weights[0].dtype == torch.bfloat16
    assert weights[0].max() < 1.0
    master.release()
    assert weights[0].dtype == torch.float32
    assert torch.allclose(weights[0], torch.full((5,), 0.99), atol=1e-3)


def test_released_parameters_are_what_was_optimised_and_share_nothing(longest) -> None:
    weights = parameters()
    master = Master(weights, torch.float32)
    trained(master, weights, 3, 0.1, 1e9)
    before = [weight.detach().clone() for weight in weights]
    master.release()
    assert all(map(torch.equal, before, weights))
    assert all(a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr() for a, b in pairwise(weights))
    assert all(weight.grad is None for weight in weights)


@each_optimiser
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pitfall_22_a_checkpoint_brings_back_weights_moments_and_losses(longest, tmp_path, dtype, optimiser) -> None:
    whole = parameters()
    master = Master(whole, dtype, optimiser)
    trained(master, whole, 3, 0.1, 1e9)
    master.save(tmp_path / "checkpoint", "key", [3.0, 2.0, 1.0], 7.5)
    trained(master, whole, 2, 0.1, 1e9)
    weights = parameters(seed=1)
    again = Master(weights, dtype, optimiser)
    assert again.restore(tmp_path / "checkpoint", "key") == ([3.0, 2.0, 1.0], 7.5)
    trained(again, weights, 2, 0.1, 1e9)
    assert all(map(torch.equal, weights, whole))


@pytest.mark.parametrize("there", ["nothing", "another run's", "half a file", "not a checkpoint"])
def test_without_its_own_checkpoint_a_run_starts_with_its_weights(tmp_path, there) -> None:
    path, weights = tmp_path / "checkpoint", parameters()
    master = Master(weights, torch.float32)
    trained(master, weights, 1, 0.1, 1e9)
    if there in ("another run's", "half a file"):
        master.save(path, "other" if there == "another run's" else "key", [1.0], 1.0)
    if there == "half a file":
        path.write_bytes(path.read_bytes()[:-20])
    if there == "not a checkpoint":
        path.write_text("thesis")
    before = [weight.detach().clone() for weight in weights]
    assert master.restore(path, "key") == ([], 0.0)
    assert all(map(torch.equal, before, weights))
