"""What is optimised: fp32 copies of the trained parameters, laid end to end in a few long vectors.

The forward pass multiplies in a dtype of its own; the optimiser adds small steps, which bf16 would round away. Hundreds
of small tensors would cost a step more than their arithmetic; one vector for all weights of a model would need a second
copy of all gradients at once. Hence vectors of bounded length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import write_tensors
from .parallel import Group

OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, str]]] = {
    "adamw": (
        partial(torch.optim.AdamW, weight_decay=0.0, fused=True),
        {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"},
    ),
    "sgd": (partial(torch.optim.SGD, momentum=0.9), {"first_moment": "momentum_buffer"}),
}
"""Name → how it is made, and what it keeps of each vector, by the names of a checkpoint's tensors."""
LONGEST = 1 << 24
"""Numbers in a vector, unless one parameter alone has more."""


@dataclass(frozen=True)
class Vector:
    """Parameters end to end."""

    parameters: list[nn.Parameter]
    master: nn.Parameter
    """fp32; where the network multiplies in fp32 too, the parameters are views of it."""
    gradient: Tensor
    """In the network's dtype; the parameters' own gradients are views of it."""

    def pieces(self, whole: Tensor) -> list[Tensor]:
        """Views of a vector, in the shapes of the parameters."""
        parts = whole.detach().split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """After a step of the optimiser."""
        for parameter, piece in zip(self.parameters, self.pieces(self.master), strict=True):
            if parameter.dtype != piece.dtype:
                parameter.copy_(piece)


class Master:
    """The optimiser and what it works on."""

    def __init__(self, parameters: Iterable[nn.Parameter], dtype: torch.dtype, optimiser: str = "adamw"):
        """Take over parameters, which hold the values to start from; `dtype` is what they are multiplied in.

        Raises DefectionError for an optimiser that is none of `OPTIMISERS`.
        """
        if optimiser not in OPTIMISERS:
            raise DefectionError(f"unknown optimiser {optimiser!r}: choose one of {', '.join(OPTIMISERS)}")
        self.vectors = [_vector(group, dtype) for group in _grouped(list(parameters))]
        masters = [vector.master for vector in self.vectors]
        make, self.kept = OPTIMISERS[optimiser]
        self.optimiser = make(masters)

    def step(self, learning_rate: float, max_norm: float, group: Group) -> None:
        """Add up the processes' gradients, clip them by their common norm, and move the weights."""
        for settings in self.optimiser.param_groups:
            settings["lr"] = learning_rate
        for vector in self.vectors:
            group.add_up(vector.gradient)
        norms = [torch.linalg.vector_norm(vector.gradient, dtype=torch.float32) for vector in self.vectors]
        scale = torch.clamp(max_norm / (torch.stack(norms).norm() + 1e-6), max=1.0)
        for vector in self.vectors:  # one at a time, since each needs its gradient in fp32
            vector.master.grad = vector.gradient.float().mul_(scale)
            self.optimiser.step()
            vector.master.grad = None
            vector.gradient.zero_()
            vector.copy_to_parameters()

    def release(self) -> None:
        """Give the parameters what was optimised, in fp32 and not its rounding; the optimiser's state is dropped."""
        self.optimiser.state.clear()
        self.optimiser.param_groups.clear()
        while self.vectors:
            vector = self.vectors.pop()
            for parameter, piece in zip(vector.parameters, vector.pieces(vector.master), strict=True):
                parameter.grad = None
                parameter.data = piece.clone()

    def save(self, path: Path, key: str, losses: list[float], seconds: float) -> None:
        """Write a checkpoint: weights, moments, and what is known of the run so far."""
        tensors: dict[str, Tensor] = {}
        for number, vector in enumerate(self.vectors):
            state = self.optimiser.state[vector.master]
            tensors[f"weights.{number}"] = vector.master
            tensors |= {f"{name}.{number}": state[own] for name, own in self.kept.items()}
        about = {"schema_version": "1", "key": key, "losses": json.dumps(losses), "seconds": repr(seconds)}
        write_tensors(path, tensors, about)

    def restore(self, path: Path, key: str) -> tuple[list[float], float]:
        """Continue from a checkpoint; give its losses, one a finished step, and the seconds they took.

        A checkpoint of a run with another key, or a damaged one, is as good as none.
        """
        try:
            with safe_open(str(path), framework="pt", device=str(self.vectors[0].master.device)) as file:
                header = file.metadata() or {}
                if header.get("key") != key:
                    return [], 0.0
                losses: list[float] = json.loads(header["losses"])
                for number, vector in enumerate(self.vectors):
                    vector.master.data.copy_(file.get_tensor(f"weights.{number}"))
                    self.optimiser.state[vector.master] = {
                        "step": torch.tensor(float(len(losses)), device=vector.master.device),
                        **{own: file.get_tensor(f"{name}.{number}") for name, own in self.kept.items()},
                    }
        except (FileNotFoundError, SafetensorError):
            return [], 0.0
        for vector in self.vectors:
            vector.copy_to_parameters()
        return losses, float(header["seconds"])


def _grouped(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            groups.append([])
            room = LONGEST
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups


def _vector(parameters: list[nn.Parameter], dtype: torch.dtype) -> Vector:
    master = nn.Parameter(torch.cat([parameter.detach().float().flatten() for parameter in parameters]))
    vector = Vector(parameters, master, torch.zeros_like(master, dtype=dtype, requires_grad=False))
    views = zip(parameters, vector.pieces(master), vector.pieces(vector.gradient), strict=True)
    for parameter, value, gradient in views:
        parameter.data = value.to(dtype)
        parameter.grad = gradient
    return vector
