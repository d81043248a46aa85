"""Every family of the zoo, wrapped."""

from collections.abc import Callable

import pytest
import torch
from defection.activations.models.model import Model
from defection.activations.models.wrap import wrap
from torch import Tensor

from ..zoo import FAMILIES, random_network


@pytest.fixture(scope="session")
def any_model(llama: Model) -> Callable[[str], Model]:
    return lambda family: wrap(random_network(family), llama.tokenizer, family)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def every_model(any_model: Callable[[str], Model], family: str) -> Model:
    return any_model(family)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The worst vector's distance from the expected one, in units of its norm."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


class Memory:
    """Fails as if only so many padded tokens fitted; the same message as the real thing."""

    def __init__(self, model: Model, fits: int, error: Exception) -> None:
        self.fits, self.error = fits, error
        self.refused = 0
        self.handle = model.blocks[1].register_forward_pre_hook(self.check)

    def check(self, block: object, args: tuple[Tensor]) -> None:
        if args[0].shape[:2].numel() > self.fits:
            self.refused += 1
            raise self.error


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]
