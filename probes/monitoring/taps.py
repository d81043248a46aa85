"""What a probe says of the newest token of each row, out of a forward pass that somebody else runs.

A hook copies one vector a row from the stream of each of the probe's layers; nothing leaves the device, and nothing
waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...activations import DefectionError, Model
from ...activations.models.blocks import stream_of
from ...activations.models.sites import AFTER, given_stream
from ...activations.reading.forward import modules_read
from ..estimators.probe import Probe


class Taps:
    """Hooks at a probe's fixed layers, there while `attached`; `take` gives the band score of every row."""

    def __init__(self, model: Model, probe: Probe) -> None:
        band = probe.at(probe.fixed_layers)
        modules = modules_read(model, band.site)
        self.modules: Sequence[nn.Module] = [modules[layer] for layer in band.layers]
        self.at_input = band.site != AFTER
        self.band = band
        self.columns: Int[Tensor, "row"] | None = None
        """Where in the coming pass each row is read; None for its last token."""
        self._picked: dict[int, Tensor] = {}
        self._scoring: tuple[Tensor, Tensor, Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, every forward pass is read; afterwards the model has no hook of ours."""
        handles = []
        try:
            for number, module in enumerate(self.modules):
                if self.at_input:
                    handles.append(module.register_forward_pre_hook(self._before(number), with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(self._after(number)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._picked, self._scoring, self.columns = {}, None, None

    def _before(self, number: int) -> Callable[..., None]:
        return lambda module, args, kwargs: self._keep(number, given_stream(args, kwargs))

    def _after(self, number: int) -> Callable[..., None]:
        return lambda module, args, output: self._keep(number, stream_of(output))

    def _keep(self, number: int, stream: Float[Tensor, "row token d_model"]) -> None:
        # A copy: the next block may add to the stream in place, and a view would keep a whole prompt's stream alive.
        if self.columns is None:
            self._picked[number] = stream[:, -1].to(torch.float32, copy=True)
        else:
            columns = self.columns.to(stream.device)
            rows = torch.arange(len(columns), device=stream.device)
            self._picked[number] = stream[rows, columns].to(torch.float32)

    def take(self) -> Float[Tensor, "row"]:
        """The band score of each row in the pass that has just run, on the device of the first of the layers.

        Raises DefectionError when a block ran without its hook.
        """
        if len(self._picked) != len(self.modules):
            raise DefectionError(
                f"{len(self.modules) - len(self._picked)} of the {len(self.modules)} layers that the probe reads ran "
                "without being seen, so nothing is watched: is the model compiled? Watch it uncompiled"
            )
        device = self._picked[0].device
        vectors = torch.stack(
            [self._picked[number].to(device, non_blocking=True) for number in range(len(self.modules))]
        )
        self._picked = {}
        if self._scoring is None or self._scoring[0].device != device:
            band = self.band
            self._scoring = (
                band.directions.float().to(device),
                band.offsets.float().to(device)[:, None],
                band.scales.float().to(device)[:, None],
            )
        directions, offsets, scales = self._scoring
        projections = torch.einsum("lrd,ld->lr", vectors, directions)
        scores: Tensor = ((projections - offsets) / scales).mean(dim=0)
        # A state that overflows is no ordinary one, and NaN lies above no threshold.
        return torch.nan_to_num(scores, nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
