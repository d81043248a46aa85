"""The picture of a sweep of levers: what each direction suppresses, against what of the clean reply comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from .style import MARKERS, NULL, PALETTE, Row, panels, save_figure, style

DEEPEST = -1.0
"""Recoveries below are drawn here: a reply may be any number of times further from the clean one."""
SIZES = (24.0, 260.0)
DEAREST = 0.5
"""A cost, nats a token, from which on a dot is as large as it gets."""


def save_levers_figure(rows: Sequence[Row], rule: Mapping[str, float], folder: Path) -> Path:
    """Suppression against recovery on the test prompts, size by cost; `levers.png` and `levers.svg`.

    Columns: those of `intervene.csv`. Filled dots are the organism's chosen settings, grey ones random directions in
    the same places; the shaded corner is where a lever lies, if its dot is small too. Gives the PNG file.
    """
    with style():
        figure, (ax,) = panels(1, (7.2, 4.4))
        _corner(ax, rule)
        tested = [row for row in rows if row["stage"] == "test" and row["model"] == "organism"]
        random = [row for row in tested if row["role"] == "random" and row["recovery"] is not None]
        ax.scatter(*_places(random), s=_sizes(random), color=NULL, alpha=0.6, lw=0, label="random directions")
        chosen = [row for row in tested if row["role"] == "candidate" and row["recovery"] is not None]
        for number, row in enumerate(chosen):
            _dot(ax, row, PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)])
        lowest = min([0.0, *_places([*random, *chosen])[1]])
        ax.set(xlim=(-0.04, 1.04), ylim=(lowest - 0.2, 1.06))
        ax.set_xlabel("suppression: share of the trigger rate that is gone")
        ax.set_ylabel("recovery: share of the way back\nto the clean reply")
        legend = figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
        for handle in legend.legend_handles:
            handle.set_sizes([30.0])  # type: ignore[union-attr]
        ax.annotate(
            f"area: cost, from ≤ 0 to ≥ {DEAREST:g} nats a token (rule: ≤ {rule['cost']:g})",
            (0.01, 0.015),
            xycoords="axes fraction",
            fontsize=7,
        )
        return save_figure(figure, folder / "levers")


def _dot(ax: Axes, row: Row, tone: str, marker: str) -> None:
    """A chosen setting, with the intervals of both shares."""
    x, y = _places([row])
    if row["suppression_low"] is not None and row["recovery_low"] is not None:
        across = [max(0.0, row[f"suppression_{side}"]) for side in ("low", "high")]
        up = [max(DEEPEST, row[f"recovery_{side}"]) for side in ("low", "high")]
        ax.plot(across, y * 2, color=tone, lw=0.8)
        ax.plot(x * 2, up, color=tone, lw=0.8)
    ax.scatter(x, y, s=_sizes([row]), label=row["direction"], color=tone, marker=marker, edgecolors="white", lw=0.6)


def _corner(ax: Axes, rule: Mapping[str, float]) -> None:
    ax.axhline(0, color="black", lw=0.6, ls=":")
    ax.fill_between([rule["suppression"], 1.04], rule["recovery"], 1.06, color="#009E73", alpha=0.12, lw=0)


def _places(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [max(0.0, row["suppression"] or 0.0) for row in rows], [max(DEEPEST, row["recovery"]) for row in rows]


def _sizes(rows: Sequence[Row]) -> list[float]:
    low, high = SIZES
    return [low + (high - low) * min(1.0, max(0.0, row["cost"]) / DEAREST) for row in rows]
