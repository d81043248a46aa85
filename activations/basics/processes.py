"""Several processes (`torchrun`, `accelerate launch`): who reads what. Nothing is communicated."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import DefectionError

MEND = "unset them or use `accelerate launch` or `torchrun`"


@dataclass(frozen=True)
class Process:
    """One of `size` processes that do the same work on different rows."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: which GPU is its own."""


def this_process() -> Process:
    """What the launcher numbered this process (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`); one of one without a launcher.

    Raises DefectionError when the numbers make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ.get(name) for name in names}
    try:
        rank = int(given["RANK"] or 0)
        size = int(given["WORLD_SIZE"] or 1)
        local_rank = int(given["LOCAL_RANK"] or 0)
    except ValueError as error:
        raise DefectionError(f"the launcher's environment is broken: {given} must be numbers; {MEND}") from error
    if not (0 <= rank < size and local_rank >= 0):
        raise DefectionError(
            f"the launcher's environment is broken: RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank}; {MEND}"
        )
    return Process(rank, size, local_rank)


def refuse_several(what: str) -> None:
    """DefectionError when a launcher started more than one process, for `what` only one can do."""
    size = this_process().size
    if size > 1:
        raise DefectionError(
            f"{what} runs in one process, but this launch has {size}: start it without `accelerate launch` or "
            "`torchrun`, and without WORLD_SIZE in the environment"
        )
