"""Where a model runs, and in which numbers."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from ..basics.errors import DefectionError
from ..basics.processes import this_process

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Hardware:
    """Where models run, and in which numbers: what goes wherever a device goes."""

    device: str = "auto"
    """As in `choose_device`."""
    dtype: str = "auto"
    """What models are computed in, as in `choose_dtype`."""

    @classmethod
    def of(cls, device: str | Hardware) -> Hardware:
        """A device's name alone leaves the dtype to the hardware."""
        return device if isinstance(device, Hardware) else cls(device)

    @property
    def place(self) -> torch.device:
        """The device; DefectionError when there is none such."""
        return choose_device(self.device)

    @property
    def computed_in(self) -> torch.dtype:
        """The dtype on that device; DefectionError for one that cannot hold a residual stream."""
        return choose_dtype(self.dtype, self.place)


def choose_device(device: str = "auto") -> torch.device:
    """`cpu`, `cuda` or one GPU by number, as in `cuda:1`; `auto` takes the GPU when there is one.

    Without a number each process of a launch takes its own GPU.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise DefectionError(f"unknown device {device!r}: choose auto, cpu, cuda, or a GPU by number as in cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DefectionError(f"device {device!r} was asked for, but PyTorch sees no GPU; use --device auto or cpu")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if colon and int(number) >= there:
        raise DefectionError(f"device {device!r} was asked for, but PyTorch sees {there} GPUs, counted from cuda:0")
    return torch.device("cuda", int(number) if colon else this_process().local_rank % there)


def choose_dtype(dtype: str | torch.dtype = "auto", device: torch.device | None = None) -> torch.dtype:
    """fp32 or bf16; `auto` takes bf16 where the hardware multiplies it faster.

    fp16 is refused: residual streams overflow it.
    """
    names = {name: known for known, name in DTYPE_NAMES.items()}
    if isinstance(dtype, torch.dtype):
        if dtype not in names.values():
            raise DefectionError(f"dtype {dtype} cannot hold a residual stream safely: use bf16 or fp32")
        return dtype
    if dtype in names:
        return names[dtype]
    if dtype != "auto":
        raise DefectionError(f"unknown dtype {dtype!r}: choose auto, bf16 or fp32")
    on_gpu = device is not None and device.type == "cuda"
    fast = torch.cuda.is_bf16_supported() if on_gpu else _cpu_is_faster_in_bf16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_is_faster_in_bf16() -> bool:
    """Whether the processor has bf16 products at a higher rate than fp32's.

    Intel's AVX512-BF16 without AMX, as most virtual machines show it, has them at half the rate (82 against 150 GFLOP/s
    measured on one core of a fifth-generation Xeon).
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return False
    return torch.cpu._is_amx_tile_supported() or "GenuineIntel" not in _processor()


def _processor() -> str:
    """What the system says of the processor, its maker's name in it."""
    told = Path("/proc/cpuinfo")
    return told.read_text() if told.is_file() else platform.processor()
