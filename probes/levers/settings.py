"""What can be done with a direction: where, how, how strongly; the settings of a sweep, and the lever that each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...activations import DefectionError, Model
from .directions import Direction
from .hooks import RESIDUAL, WRITES, Ablate, Erase, Lever, Steer

ALL, BAND = "all", "band"
UNTOUCHED = "none"
COARSE, FINE = (0.25, 1.0), (0.5, 2.0, 4.0)
"""Sizes of α tried everywhere, and around the best; in norms of the stream at ordinary prompts."""
STRIDE = 4
"""Every so many layers are tried first, their neighbours around the best."""


@dataclass(frozen=True)
class Setting:
    """One way to use one direction."""

    direction: str
    kind: str
    """`ablate`, `erase`, `steer`, or `none`."""
    place: str = RESIDUAL
    layers: str = ALL
    """A layer's number, `all`, or `band` (the probe's own layers)."""
    alpha: float = 0.0
    """Of steering; negative is away from the direction."""

    @property
    def shape(self) -> Setting:
        """The same done with another direction: what random ones are tried in."""
        kind = "ablate" if self.kind == "erase" else self.kind
        return replace(self, direction="", kind=kind, alpha=abs(self.alpha))

    @property
    def words(self) -> str:
        """For a person to read."""
        if self.kind == UNTOUCHED:
            return "no lever"
        where = self.layers if self.layers in (ALL, BAND) else f"layer {self.layers}"
        where = {ALL: "all layers", BAND: "the probe's band"}.get(where, where)
        how = f"steered by {self.alpha:+g}" if self.kind == "steer" else {"erase": "erased"}.get(self.kind, "ablated")
        return f"{how}, {where}, {self.place}"


@dataclass(frozen=True)
class Ground:
    """What settings are about: a model's depth, the band, and how long the stream is at ordinary prompts."""

    n_layers: int
    band: tuple[int, ...]
    norms: Mapping[int, float]

    def layers(self, setting: Setting, direction: Direction) -> tuple[int, ...]:
        """The layers of a setting at which the direction exists; DefectionError for a layer that the model lacks."""
        named = {ALL: tuple(range(self.n_layers)), BAND: self.band}.get(setting.layers)
        wanted = (int(setting.layers),) if named is None else named
        if wanted[-1] >= self.n_layers:
            raise DefectionError(f"the model has no layer {wanted[-1]}: its layers are 0 to {self.n_layers - 1}")
        return tuple(layer for layer in wanted if layer in direction.vectors)


def lever_of(model: Model, setting: Setting, direction: Direction, ground: Ground) -> Lever:
    """The context manager that a setting is."""
    layers = ground.layers(setting, direction)
    if setting.kind == "erase" and direction.erasers is not None:
        return Erase(model, direction.erasers, layers=layers, place=setting.place)
    if setting.kind == "steer":
        # Over many layers the pushes add up: each is one share of the whole.
        norms = {layer: ground.norms[layer] / len(layers) for layer in layers}
        return Steer(model, direction.vectors, alpha=setting.alpha, layers=layers, place=setting.place, norms=norms)
    return Ablate(model, direction.vectors, layers=layers, place=setting.place)


def first_settings(directions: Sequence[Direction], ground: Ground) -> list[Setting]:
    """What is tried of every direction at first: every fourth layer, all and the band; coarse α of both signs."""
    every = [(setting, direction) for direction in directions for setting in _of(direction, ground)]
    return [setting for setting, direction in every if ground.layers(setting, direction)]


def _of(direction: Direction, ground: Ground) -> Iterator[Setting]:
    kind = "ablate" if direction.erasers is None else "erase"
    single = [
        str(layer)
        for layer in range(min(STRIDE, ground.n_layers) - 1, ground.n_layers, STRIDE)
        if layer in direction.vectors
    ]
    for layers in (*single, ALL, BAND):
        yield Setting(direction.name, kind, RESIDUAL, layers)
    for place in ("attention", "mlp", WRITES) if kind == "ablate" else ():
        yield from (Setting(direction.name, kind, place, layers) for layers in (ALL, BAND))
    if direction.rank == 1 and kind == "ablate":
        for layers in (*single, BAND):
            yield from (
                Setting(direction.name, "steer", RESIDUAL, layers, sign * size) for size in COARSE for sign in (1, -1)
            )


def neighbours(setting: Setting, direction: Direction, ground: Ground) -> list[Setting]:
    """Settings around a good one: the layers beside it, and α smaller and larger."""
    found = []
    if setting.layers not in (ALL, BAND):
        near = (int(setting.layers) + step for step in (-2, -1, 1, 2))
        found += [replace(setting, layers=str(layer)) for layer in near if layer in direction.vectors]
    if setting.kind == "steer":
        sign = 1 if setting.alpha > 0 else -1
        found += [replace(setting, alpha=sign * size) for size in FINE]
    return [other for other in found if ground.layers(other, direction)]
