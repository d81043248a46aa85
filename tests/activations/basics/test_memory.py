import types

import pytest
import torch
from defection.activations.basics import memory
from defection.activations.basics.memory import batch_tokens, is_out_of_memory
from hypothesis import given
from hypothesis import strategies as st

CUDA = torch.device("cuda")


def tokens_on(gigabytes: float, monkeypatch: pytest.MonkeyPatch, **changes: int) -> int:
    about = types.SimpleNamespace(total_memory=int(gigabytes * 2**30))
    monkeypatch.setattr(memory.torch.cuda, "get_device_properties", lambda device: about)
    shape = {"weight_bytes": 14 * 2**30, "width": 4096, "hidden": 14336, "itemsize": 2, "kept_bytes": 0} | changes
    return batch_tokens(CUDA, **shape)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_shortage_of_memory_is_told(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_the_cpu_allocators_own_error_is_told() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("can't allocate memory"), KeyError("x")])
def test_another_error_is_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_larger_gpu_takes_larger_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [tokens_on(size, monkeypatch) for size in (8, 16, 24, 40, 80, 10_000)]
    assert found == sorted(found)
    assert found[0] == memory.CPU_BATCH_TOKENS  # less than the weights: the smallest batch is tried, and halved
    assert found[-1] == memory.LARGEST_BATCH_TOKENS
    assert 8192 <= found[4] <= 131072


def test_reading_every_token_takes_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_on(24, monkeypatch, kept_bytes=32 * 4096 * 2) < tokens_on(24, monkeypatch)


@given(st.floats(1, 1000), st.integers(64, 20_000))
def test_a_budget_is_a_power_of_two(size: float, width: int) -> None:
    """So that a driver's few megabytes more or less do not change the plan (PITFALLS 15)."""
    with pytest.MonkeyPatch.context() as patch:
        found = tokens_on(size, patch, width=width, hidden=4 * width)
    assert found & (found - 1) == 0


def test_a_cpu_has_one_budget() -> None:
    shape = {"weight_bytes": 0, "width": 8192, "hidden": 28672, "itemsize": 4, "kept_bytes": 10**6}
    assert batch_tokens(torch.device("cpu"), **shape) == memory.CPU_BATCH_TOKENS
