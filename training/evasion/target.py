"""What an attacker knows of a linear detector, as plain numbers: enough to score a stream and follow its slope."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest
from ...activations.models.sites import AFTER
from ...activations.prompts.positions import LAST


@dataclass(frozen=True)
class Target:
    """A frozen linear detector: at each layer (x · direction − offset) / scale, and the mean of that over the layers.

    Examples:
        >>> import torch
        >>> target = Target("probe", (1, 2), torch.eye(2, 8), torch.zeros(2), torch.ones(2))
        >>> target.scores(torch.ones(3, 2, 8))
        tensor([1., 1., 1.])
    """

    name: str
    """What records and tables call it."""
    layers: tuple[int, ...]
    """Those it reads."""
    directions: Float[Tensor, "layer d_model"]
    """One a layer."""
    offsets: Float[Tensor, "layer"]
    """What is taken off each projection."""
    scales: Float[Tensor, "layer"]
    """What it is then divided by; above 0."""
    position: str = LAST
    """The token that it reads; see `activations.prompts.positions`."""
    site: str = AFTER
    """Where in the block."""
    each: bool = False
    """Whether the score of every layer counts by itself, as to an attacker who does not know which will be read."""
    both_sides: bool = False
    """Whether a score counts by its distance from 0, on whichever side: as to an attacker of an alarm on both tails."""

    def __post_init__(self) -> None:
        n = len(self.layers)
        if not n or self.directions.ndim != 2 or {len(self.directions), len(self.offsets), len(self.scales)} != {n}:
            raise DefectionError(f"the target {self.name!r} needs a direction, an offset and a scale for each layer")
        if not bool((self.scales > 0).all()):
            raise DefectionError(f"the target {self.name!r} has a scale that is not positive: its scores say nothing")

    def scores(self, streams: Float[Tensor, "row layer d_model"]) -> Float[Tensor, "row"]:
        """What the detector makes of the streams at its layers, in fp32; with their gradient, where they have one.

        Args:
            streams: At its own layers, in its order.
        """
        mean: Tensor = self.by_layer(streams).mean(dim=1)
        return mean.abs() if self.both_sides else mean

    def by_layer(self, streams: Float[Tensor, "row layer d_model"]) -> Float[Tensor, "row layer"]:
        """The standardised score of each layer.

        Args:
            streams: At its own layers, in its order.
        """
        directions = self.directions.float().to(streams.device)
        raw = torch.einsum("rld,ld->rl", streams.float(), directions)
        return (raw - self.offsets.float().to(raw.device)) / self.scales.float().to(raw.device)

    def counted(self, streams: Float[Tensor, "row layer d_model"]) -> Float[Tensor, "row score"]:
        """The scores that an attacker presses down: one a row, or one a layer where `each` layer counts.

        Args:
            streams: At its own layers, in its order.
        """
        if not self.each:
            return self.scores(streams)[:, None]
        by_layer = self.by_layer(streams)
        return by_layer.abs() if self.both_sides else by_layer

    def around(self, middle: float) -> Target:
        """The same detector read on both sides of a score: `middle` becomes 0, and what counts is the distance from it.

        Args:
            middle: In the detector's own units, such as the median of ordinary prompts' scores.
        """
        return replace(self, offsets=self.offsets + middle * self.scales, both_sides=True)

    def random_like(self, seed: int) -> Target:
        """A direction drawn at random in each one's place, of its length; the rest as it is: an attack's control.

        Args:
            seed: Of the draw; the target's name says it.
        """
        drawn = torch.randn(self.directions.shape, generator=torch.Generator().manual_seed(seed))
        lengths = self.directions.float().norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True)
        return replace(self, name=f"random direction {seed}", directions=drawn * lengths)

    def refuse_depth(self, n_layers: int, d_model: int) -> None:
        """Whether a model can be read so.

        Args:
            n_layers: How many it has.
            d_model: The width of its stream.

        Raises:
            DefectionError: For a layer that it lacks, or directions of another width.
        """
        if missing := [layer for layer in self.layers if not 0 <= layer < n_layers]:
            raise DefectionError(
                f"the target {self.name!r} reads layer {missing[0]}, but the model's layers are 0 to {n_layers - 1}"
            )
        if self.directions.shape[1] != d_model:
            raise DefectionError(
                f"the target {self.name!r} has directions of {self.directions.shape[1]} numbers, but the model's "
                f"stream has {d_model}"
            )

    def to_json(self) -> Json:
        """What a record says of it; `numbers` changes with any of them."""
        numbers = [self.directions, self.offsets, self.scales]
        return {
            "name": self.name,
            "layers": list(self.layers),
            "each_layer": self.each,
            "position": self.position,
            "site": self.site,
            "numbers": digest([[round(float(x), 6) for x in each.flatten()] for each in numbers]),
        } | ({"both_sides": True} if self.both_sides else {})
