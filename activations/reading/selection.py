"""What is read of some prompts: which of their tokens, hence which must run, and how many vectors that gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..prompts.positions import wanted_tokens
from ..prompts.rendered import Rendered
from .forward import Reading, up_to_wanted
from .residuals import offsets_of


@dataclass(frozen=True)
class Selection:
    """Prompts, or a shard of them, and the tokens read of each."""

    reading: Reading
    ids: Sequence[Sequence[int]]
    """Token ids of each prompt up to the last one that is read."""
    wanted: Sequence[Sequence[int]]
    """Indices into them."""

    @property
    def counts(self) -> list[int]:
        """How many vectors each prompt gives."""
        return [1 if self.reading.one_each else len(tokens) for tokens in self.wanted]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each prompt's vectors start, and one entry more for where the last one's end."""
        return offsets_of(self.counts)

    def places(self, rows: Sequence[int]) -> list[int]:
        """The indices of those prompts' vectors."""
        return [place for row in rows for place in range(self.offsets[row], self.offsets[row + 1])]

    def part(self, start: int, end: int) -> Selection:
        """The prompts from `start` to `end` alone."""
        return Selection(self.reading, self.ids[start:end], self.wanted[start:end])


def select(reading: Reading, rows: Sequence[Rendered]) -> Selection:
    """Apply a reading's rule; DefectionError naming the first prompt to which it does not apply."""
    wanted = wanted_tokens(reading.position, rows)
    return Selection(reading, up_to_wanted([row.ids for row in rows], wanted), wanted)
