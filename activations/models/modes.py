"""A network that runs as it does in use, and is afterwards what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_use(network: nn.Module) -> Iterator[None]:
    """Inside, no module of the network is in training mode (dropout, say); afterwards those are that were."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
