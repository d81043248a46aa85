"""Which layers a verdict is read at: fixed by depth, or chosen on development organisms by a rule, and written down.

A layer chosen on the test organism is no evidence (a maximum over layers proves nothing). The record says by
which rule and on which organisms the layers were chosen, so that a verdict can be held against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, write_json

LAYER_CHOICE_SCHEMA = 1
CHOSEN = ("best-mean", "best-worst")
WIDTH = 4
STRETCH = (0.4, 0.95)
"""Where the default's layers begin and end, as shares of the depth: past where a string is read as a string, short of
the last blocks, which turn to the next token. Settled on development organisms (docs/explanation/defaults.md)."""
RECORDED, OTHER_LAYERS, SAME_ORGANISM = "recorded", "other layers than recorded", "chosen on this very organism"


@dataclass(frozen=True)
class LayerChoice:
    """Layers, and where they come from."""

    rule: str
    """`middle`: around n_layers // 2. `stretch`: between two shares of the depth. `best-mean`, `best-worst`: the band
    whose AUROC is highest, averaged over the development organisms or on the worst of them."""
    layers: tuple[int, ...]
    n_layers: int
    organisms: tuple[str, ...] = ()
    """Fingerprints of the development organisms, sorted; none for layers that follow from the depth alone."""
    probe: str = ""
    """The probe whose AUROCs were compared."""

    @property
    def reason(self) -> str:
        """Why these layers, in words for a table or a page."""
        count = {1: "one", 2: "two", 3: "three", 4: "four"}.get(len(self.layers), str(len(self.layers)))
        if self.rule == "middle":
            return (
                f"fixed: {count} layer{'s' if len(self.layers) > 1 else ''} around the middle one, "
                f"{self.n_layers} // 2, which MacDiarmid et al. 2024 read"
            )
        if self.rule == "stretch":
            return (
                f"fixed: layers {self.layers[0]}–{self.layers[-1]} of {self.n_layers}, "
                "a stretch of the depth settled on other organisms"
            )
        how = "on average over" if self.rule == "best-mean" else "on the worst of"
        return f"chosen: the {count} neighbouring layers best {how} {len(self.organisms)} development organisms"

    def to_json(self) -> Json:
        """The record, as a file or a preregistration holds it."""
        return asdict(self) | {"layers": list(self.layers), "organisms": list(self.organisms), "reason": self.reason}

    def standing(self, layers: Sequence[int], organism: str) -> str:
        """How a verdict at these layers, on the organism with this fingerprint, stands to the record."""
        if tuple(layers) != self.layers:
            return OTHER_LAYERS
        return SAME_ORGANISM if organism in self.organisms else RECORDED

    def mark(self, layers: Sequence[int], organism: str) -> Json:
        """What a verdict says of its layers: keys to put beside its figures."""
        standing = self.standing(layers, organism)
        return {
            "layer_rule": self.rule,
            "layer_reason": self.reason,
            "layer_standing": standing,
            "layers_are_recorded": standing == RECORDED,
        }

    def save(self, path: str | Path) -> None:
        """A small JSON file."""
        write_json(Path(path), {"schema_version": LAYER_CHOICE_SCHEMA, **self.to_json()})


def middle_layers(n_layers: int, width: int = WIDTH) -> LayerChoice:
    """A band around the middle layer, which follows from the depth alone and needs no organism."""
    if not 1 <= width <= n_layers:
        raise DefectionError(f"a band of {width} layers does not fit a model of {n_layers}")
    start = min(n_layers // 2 - (width - 1) // 2, n_layers - width)
    return LayerChoice("middle", tuple(range(start, start + width)), n_layers)


def stretch_of_layers(n_layers: int, start: float = STRETCH[0], end: float = STRETCH[1]) -> LayerChoice:
    """The layers between two shares of the depth, the end excluded, one at least; follows from the depth alone."""
    if not 0 <= start < end <= 1:
        raise DefectionError(f"{start}–{end} is no stretch of the depth: give 0 <= start < end <= 1")
    first = min(int(start * n_layers + 0.5), n_layers - 1)
    return LayerChoice("stretch", tuple(range(first, max(first + 1, int(end * n_layers + 0.5)))), n_layers)


def choose_layers(
    aurocs: Mapping[str, Float[Tensor, "layer"]], *, rule: str = "best-worst", width: int = WIDTH, probe: str = ""
) -> LayerChoice:
    """The band of `width` neighbouring layers with the highest AUROC on development organisms.

    `aurocs` maps each organism's fingerprint to its signed AUROC at every layer, on development prompts. Of bands that
    tie, the one nearest the middle is taken (at 1.0 the lowest layer would win by its number).
    Raises DefectionError for an unknown rule, no organism, models of different depth or a value that is not finite.
    """
    if rule not in CHOSEN:
        raise DefectionError(f"unknown rule {rule!r}: choose one of {', '.join(CHOSEN)}, or call middle_layers")
    if not aurocs:
        raise DefectionError("layers are chosen on development organisms, but none was given")
    depths = {len(areas) for areas in aurocs.values()}
    if len(depths) > 1:
        raise DefectionError(
            f"development organisms of different depth ({sorted(depths)} layers) cannot share a choice"
        )
    (n_layers,) = depths
    table = torch.stack([areas.double().cpu() for areas in aurocs.values()])
    if not table.isfinite().all():
        raise DefectionError("an AUROC of a development organism is not finite")
    middle = middle_layers(n_layers, width).layers[0]
    bands = table.unfold(1, width, 1).mean(dim=-1)
    value = bands.mean(dim=0) if rule == "best-mean" else bands.amin(dim=0)
    ties = (value >= value.max() - 1e-12).nonzero().flatten().tolist()
    start = min(ties, key=lambda i: (abs(i - middle), i))
    return LayerChoice(rule, tuple(range(start, start + width)), n_layers, tuple(sorted(aurocs)), probe)
