"""Several processes that train one model: each computes its share of every batch, and the gradients are added up.

`accelerate launch` or `torchrun` start and number them; `accelerate` connects them (NCCL on GPUs, gloo on CPUs). They
share a file system: the first of them writes, all read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.basics.processes import MEND, this_process

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""How long processes wait for one another: while one of them works alone (replies of the base), the others idle."""


@dataclass(frozen=True)
class Group:
    """One of `size` processes that train together; alone by default."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """The rows of a batch that are computed here; every row belongs to exactly one process."""
        return rows if self.size == 1 else rows[self.rank :: self.size]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by its sum over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def total(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        self.add_up(tensor)
        return tensor.item()

    def first_alone(self, work: Callable[[], object]) -> None:
        """Let the first process do something while the others wait for it.

        When it fails, they raise a DefectionError too: nobody is left waiting.
        """
        failure: BaseException | None = None
        if self.first:
            try:
                work()
            except BaseException as error:
                failure = error
        failed = self.total(float(failure is not None))
        if failure is not None:
            raise failure
        if failed:
            raise DefectionError("the first process failed; its own message says why")


def join(device: torch.device) -> Group:
    """Meet the other processes of this launch, if there are any.

    Raises DefectionError where the launcher is configured to split the model: only batches are split here.
    """
    process = this_process()
    if process.size == 1:
        return Group(device=device)
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise DefectionError(
                f"accelerate is configured for {kind}, which splits the model; here each process trains a whole "
                "model on its share of each batch: set distributed_type to MULTI_GPU, or pass --multi_gpu"
            )
    from accelerate import PartialState  # type: ignore[import-untyped]

    environment = dict(os.environ)
    try:
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:  # the latter of torch.distributed, too
        # What it half set up would meet the next trainer of this process.
        PartialState._reset_state()
        os.environ.clear()
        os.environ.update(environment)
        reason = " ".join(str(error).split())[:200]
        raise DefectionError(
            f"the {process.size} processes that RANK and WORLD_SIZE speak of cannot meet ({reason}); {MEND}"
        ) from error
    return Group(process.rank, process.size, device)
