"""A GPU that is none: tensors on the host that refuse to meet others, or NumPy, as those of a real GPU do.

Inside `PretendedGpu` whatever is asked for on "cuda" is an `OnGpu`, and only `.cpu()` or `.to("cpu")` brings it back.
The arithmetic is the host's, so a test needs no GPU to find where two devices meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, HOST = torch.device("cuda"), torch.device("cpu")


class OnGpu(Tensor):
    """Says of itself that it lies on a GPU."""


class PretendedGpu(TorchFunctionMode):
    """Keeps count of where every tensor is said to lie."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if isinstance(args[0], OnGpu) else HOST
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return isinstance(args[0], OnGpu)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], OnGpu):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func in (Tensor.cpu, Tensor.cuda):
            return _placed(args[0], func is Tensor.cuda)
        if func is Tensor.to:
            return _moved(args[0], args[1:], kwargs)
        wanted = kwargs.pop("device", None)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = [isinstance(each, OnGpu) for each in tensors]
        if func in (Tensor.__getitem__, Tensor.__setitem__):  # a GPU's tensor takes indices that lie on the host
            if any(on_gpu) and not on_gpu[0]:
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        elif any(on_gpu) and any(each.ndim and not there for each, there in zip(tensors, on_gpu, strict=True)):
            raise RuntimeError(
                f"{func.__name__}: expected all tensors to be on the same device, but found cuda and cpu"
            )
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            found = list(found) if func is Tensor.__iter__ else found
        gpu = any(on_gpu) if wanted is None else torch.device(wanted).type == "cuda"
        found = tree_map(lambda each: _placed(each, gpu) if isinstance(each, Tensor) else each, found)
        return iter(found) if func is Tensor.__iter__ else found


def _placed(tensor: Tensor, gpu: bool) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(OnGpu if gpu else Tensor)


def _moved(tensor: Tensor, where: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    gpu, kept = isinstance(tensor, OnGpu), []
    for each in [*where, *([kwargs["device"]] if "device" in kwargs else [])]:
        if isinstance(each, Tensor):
            gpu, kept = isinstance(each, OnGpu), [*kept, each.dtype]
        elif isinstance(each, str | torch.device):
            gpu = torch.device(each).type == "cuda"
        else:
            kept.append(each)
    with torch._C.DisableTorchFunctionSubclass():
        return _placed(
            tensor.to(*kept, **{k: v for k, v in kwargs.items() if k != "device"}) if kept or kwargs else tensor, gpu
        )
