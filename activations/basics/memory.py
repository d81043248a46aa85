"""Memory: giving back what is free, telling when there is not enough, and how many tokens fit."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from .errors import DefectionError

T = TypeVar("T")

CPU_BATCH_TOKENS = 1024
"""Tokens of a batch on a CPU: larger ones are no faster there."""
LARGEST_BATCH_TOKENS = 1 << 17


def give_back_memory() -> None:
    """Return freed memory to the system, where glibc keeps it: after a load or a training run that is gigabytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library, which may not need it
            return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA's, Python's, or PyTorch's CPU allocator's plain message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    says = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in says)


def in_halves(
    rows: Sequence[int],
    compute: Callable[[Sequence[int]], T],
    *,
    tokens: Callable[[int], int],
    device: torch.device,
    forget: Callable[[], None] = lambda: None,
) -> list[T]:
    """What `compute` gives for all rows, or, where that does not fit the memory, for halves of them, in order.

    `tokens` is the length of a row, `forget` gives back what is kept between calls.
    Raises DefectionError when a single row does not fit.
    """
    try:
        return [compute(rows)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise DefectionError(
                f"a prompt of {tokens(rows[0])} tokens does not fit the memory of {device} beside the "
                "model; shorten it, load the model in bf16, or use a larger device"
            ) from error
    # Outside of the handler: the traceback would keep alive the tensors that filled the memory.
    forget()
    give_back_memory()
    middle = len(rows) // 2
    halves = (rows[:middle], rows[middle:])
    return [found for half in halves for found in in_halves(half, compute, tokens=tokens, device=device, forget=forget)]


def batch_tokens(
    device: torch.device, *, weight_bytes: int, width: int, hidden: int, itemsize: int, kept_bytes: int
) -> int:
    """How many padded tokens a batch may have on a device.

    On a CPU a constant. On a GPU a power of two, so that half of what the weights leave of its *whole* memory holds
    the batch: `width` and `hidden` are those of the residual stream and the MLP, `kept_bytes` what is kept of each
    token. Whatever else happens to be on the GPU does not enter: the same model on the same kind of GPU always
    gets the same number, hence the same batches and the same bytes, and a batch that does not fit after
    all is halved while it runs.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    room: int = torch.cuda.get_device_properties(device).total_memory - weight_bytes
    # At the widest point of a block: the MLP's gate, up and product, and about eight copies of the stream.
    per_token = (3 * hidden + 8 * width) * itemsize + kept_bytes
    fitting = max(0, room // 2) // per_token
    return min(LARGEST_BATCH_TOKENS, max(CPU_BATCH_TOKENS, 1 << max(0, fitting.bit_length() - 1)))
