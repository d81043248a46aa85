"""Token-level residuals of prompts of different lengths, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..activations.errors import DefectionError


@dataclass(frozen=True)
class Ragged:
    """All tokens of all prompts, one prompt after another; no pad exists, so none can leak (PITFALLS 5)."""

    values: Float[Tensor, "token layer d"]
    offsets: Int[Tensor, "prompt+1"]
    """Where each prompt's tokens begin, and where the last one's end."""

    def __post_init__(self) -> None:
        ends = self.offsets
        if ends.ndim != 1 or len(ends) < 2 or int(ends[0]) != 0 or int(ends[-1]) != len(self.values):
            raise DefectionError(f"offsets must run from 0 to the {len(self.values)} tokens there are")
        if bool((ends.diff() < 1).any()):
            prompt = int((ends.diff() < 1).nonzero()[0])
            raise DefectionError(f"prompt {prompt} has no tokens: offsets must increase")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, "prompt"]:
        """Tokens a prompt."""
        return self.offsets.diff()


def one_token_each(rows: Float[Tensor, "n layer d"]) -> Ragged:
    """Rows as prompts of a single token."""
    return Ragged(rows, torch.arange(len(rows) + 1, device=rows.device))
