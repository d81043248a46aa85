"""The pictures of what a direction is, each drawn from the tables of an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..probes import heatmaps, plots
from ..probes.figures import save_figure
from .explain import PROBE, Explanation

Table = Sequence[dict[str, Any]]
LONGEST = 90
"""Tokens of a conversation that a heat map shows."""


def save_explanation_figures(found: Explanation, folder: Path) -> list[Path]:
    """Draw all that the tables allow; give the PNG files."""
    tables = found.tables
    with plots.style():
        figures = {
            "cosines-by-layer": _cosines(tables["cosines"]),
            "scores-by-layer": _ridges(tables["scores"], str(found.about["marked_by"])),
            "written-by-block": _blocks(tables["blocks"]),
            "heads": _heads(tables["parts"]),
            "tokens-by-layer": _tokens(tables["tokens"]),
        }
        if "questions" in tables:
            figures["questions"] = _questions(tables["questions"], found.about["families"])
            figures["left-out"] = _left_out(tables["left_out"], found.about["fixed_layers"])
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _cosines(table: Table) -> Figure:
    figure = Figure(figsize=(5.6, 3.0), layout="constrained")
    ax = figure.subplots()
    plots.cosines_by_layer(ax, table, PROBE)
    ax.set(xlabel="layer (output of block)", ylabel="cosine with the probe")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _ridges(table: Table, marked_by: str) -> Figure:
    layers = len({row["layer"] for row in table})
    figure = Figure(figsize=(4.6, 1.2 + 0.16 * layers), layout="constrained")
    ax = figure.subplots()
    plots.ridgelines(ax, table)
    ax.set(xlabel="score (s.d. of clean prompts)", ylabel="layer (output of block)")
    handles, _ = ax.get_legend_handles_labels()
    names = {"defection": ("replies normally", "defects"), "trigger": ("without trigger", "with trigger")}
    figure.legend(handles, names.get(marked_by, ("lower half", "upper half")), loc="outside lower center", ncols=2)
    return figure


def _by_layer(table: Table) -> dict[int, list[dict[str, Any]]]:
    return {
        layer: [row for row in table if row["layer"] == layer] for layer in dict.fromkeys(r["layer"] for r in table)
    }


def _blocks(table: Table) -> Figure:
    panels = _by_layer(table)
    figure = Figure(figsize=(1.0 + 3.6 * len(panels), 3.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (layer, rows) in zip(axes, panels.items(), strict=True):
        plots.written_by_block(ax, rows)
        ax.set(title=f"direction of layer {layer}", xlabel="block")
    axes[0].set_ylabel("marked minus others\n(s.d. of clean prompts)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _heads(table: Table) -> Figure:
    panels = _by_layer(table)
    figure = Figure(figsize=(0.6 + 4.0 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (layer, rows) in zip(axes, panels.items(), strict=True):
        heatmaps.head_map(ax, rows)
        ax.set_title(f"direction of layer {layer}")
    return figure


def _tokens(table: Table) -> Figure:
    """The first two conversations: as they come of `with_and_without`, a prompt without the trigger and with it."""
    shown = list(dict.fromkeys(str(row["prompt"]) for row in table))[:2]
    figure = Figure(figsize=(9.0, 3.4 * len(shown)), layout="constrained")
    for ax, prompt in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        rows = [row for row in table if row["prompt"] == prompt]
        last = max(int(row["position"]) for row in rows)
        heatmaps.layer_position_map(ax, [row for row in rows if int(row["position"]) > last - LONGEST])
        ax.set_title(prompt)
    return figure


def _questions(table: Table, families: dict[str, str]) -> Figure:
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    ax = figure.subplots()
    heatmaps.cosine_matrix(ax, table, groups=families if len(set(families.values())) > 1 else None)
    ax.set_title(f"questions' directions, layer {table[0]['layer']}")
    return figure


def _left_out(table: Table, fixed_layers: Sequence[int]) -> Figure:
    names = {row["left_out"] for row in table}
    figure = Figure(figsize=(5.4, 0.9 + 0.15 * len(names)), layout="constrained")
    ax = figure.subplots()
    plots.left_out_margins(ax, [row for row in table if row["layer"] in fixed_layers])
    ax.set_xlabel("how far the others tell the left-out question's answers apart")
    return figure
