"""What to divide by, where what is divided may not vary."""

from __future__ import annotations

import torch
from torch import Tensor


def divisor(spread: Tensor) -> Tensor:
    """The spread itself, and 1 where there is none: what does not vary stays as it is instead of becoming infinite.

    Examples:
        >>> divisor(torch.tensor([2.0, 0.0]))
        tensor([2., 1.])
    """
    return torch.where(spread > 0, spread, 1.0)
