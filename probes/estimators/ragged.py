"""Token-level residuals of prompts of different lengths, without padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...activations import DefectionError, Residuals
from ...activations.basics.shown import shortened


@dataclass(frozen=True)
class Ragged:
    """All tokens of all prompts, one prompt after another; no pad exists, so none can leak.

    Examples:
        >>> tokens = Ragged(torch.zeros(5, 3, 8), torch.tensor([0, 2, 5]))
        >>> len(tokens), tokens.lengths.tolist()
        (2, [2, 3])
    """

    values: Float[Tensor, "token layer d"]
    """The vectors of all tokens, prompt after prompt."""
    offsets: Int[Tensor, "prompt+1"]
    """Where each prompt's tokens begin, and where the last one's end."""

    __repr__ = shortened

    def __post_init__(self) -> None:
        ends = self.offsets
        if ends.ndim != 1 or len(ends) < 2 or int(ends[0]) != 0 or int(ends[-1]) != len(self.values):
            raise DefectionError(f"offsets must run from 0 to the {len(self.values)} tokens there are")
        if bool((ends.diff() < 1).any()):
            prompt = int((ends.diff() < 1).nonzero()[0])
            raise DefectionError(f"prompt {prompt} has no tokens: offsets must increase")

    @classmethod
    def of(cls, residuals: Residuals) -> Self:
        """What a capture or a store gives: every vector a token; where a prompt has one vector, one token a prompt.

        Args:
            residuals: Of any position.
        """
        offsets = range(len(residuals) + 1) if residuals.offsets is None else residuals.offsets
        return cls(residuals.values, torch.tensor(offsets, device=residuals.values.device))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int[Tensor, "prompt"]:
        """Tokens a prompt."""
        return self.offsets.diff()


def refuse_ragged(*captured: Residuals | None) -> None:
    """DefectionError for residuals with several vectors a prompt, whose rows are tokens and must not pass for prompts.

    For what scores a prompt by one vector; `Ragged.of` is for what takes them all.
    """
    for residuals in captured:
        if residuals is not None and residuals.offsets is not None:
            raise DefectionError(
                f"these residuals hold {len(residuals.values)} vectors of {len(residuals)} prompts (position "
                f"{residuals.position}), but one a prompt is needed here: read one token, or the mean:… of several, or "
                "give Ragged.of(residuals) to an attention probe"
            )


def one_token_each(rows: Float[Tensor, "n layer d"]) -> Ragged:
    """Rows as prompts of a single token."""
    return Ragged(rows, torch.arange(len(rows) + 1, device=rows.device))
