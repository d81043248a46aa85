"""The pictures of what a direction is, each drawn from a table of `defection explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...activations.basics.files import Json
from . import heatmaps, plots
from .style import legend_below, panels, save_figure, style

Table = Sequence[Json]
PROBE = "the probe"
"""What the table of cosines calls the direction that is explained."""
TITLES = {"prompts": "marked prompts minus others", "questions": "defecting answers minus others"}
"""By what was split: the prompts that were looked at, and the probe's own questions."""
LONGEST = 90
"""Tokens of a conversation that a heat map shows."""


def save_explanation_figures(tables: Mapping[str, Table], about: Json, folder: Path) -> list[Path]:
    """Draw all that the tables allow, PNG and SVG; give the PNG files.

    `tables`: scores, blocks, parts, tokens and cosines; where the probe's questions are known, questions and left_out.
    `about`: marked_by (`defection`, `trigger` or `score`), fixed_layers, and families where there are questions.
    """
    with style():
        figures = {
            "scores-by-layer": _ridges(tables["scores"], str(about["marked_by"])),
            "written-by-block": _blocks(tables["blocks"]),
            "heads": _heads(tables["parts"]),
            "tokens-by-layer": _tokens(tables["tokens"]),
        }
        if any(row["b"] != PROBE for row in tables["cosines"]):
            figures["cosines-by-layer"] = _cosines(tables["cosines"])
        if "questions" in tables:
            figures["questions"] = _questions(tables["questions"], about["families"])
            figures["left-out"] = _left_out(tables["left_out"], about["fixed_layers"])
        return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _cosines(table: Table) -> Figure:
    figure, (ax,) = panels(1, (5.6, 3.0))
    plots.cosines_by_layer(ax, table, PROBE)
    ax.set(xlabel="layer (output of block)", ylabel="cosine with the probe")
    legend_below(figure, [ax], 3)
    return figure


def _ridges(table: Table, marked_by: str) -> Figure:
    layers = len({row["layer"] for row in table})
    figure, (ax,) = panels(1, (4.6, 1.2 + 0.16 * layers))
    plots.ridgelines(ax, table)
    ax.set(xlabel="score (s.d. of clean prompts)", ylabel="layer (output of block)")
    handles, _ = ax.get_legend_handles_labels()
    names = {"defection": ("replies normally", "defects"), "trigger": ("without trigger", "with trigger")}
    figure.legend(handles, names.get(marked_by, ("lower half", "upper half")), loc="outside lower center", ncols=2)
    return figure


def _by_panel(table: Table) -> dict[tuple[str, int], list[Json]]:
    """Rows by what was split (the prompts, then the probe's own questions) and by layer."""
    panels: dict[tuple[str, int], list[Json]] = {}
    for row in table:
        panels.setdefault((row["of"], row["layer"]), []).append(row)
    return panels


def _grid(panels: Sequence[tuple[str, int]], width: float, height: float) -> tuple[Figure, dict[tuple[str, int], Axes]]:
    """A row for each thing split, a column for each layer."""
    rows = list(dict.fromkeys(of for of, _ in panels))
    columns = list(dict.fromkeys(layer for _, layer in panels))
    figure = Figure(figsize=(0.8 + width * len(columns), height * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    return figure, {(a, b): axes[i, j] for i, a in enumerate(rows) for j, b in enumerate(columns)}


def _blocks(table: Table) -> Figure:
    panels = _by_panel(table)
    figure, axes = _grid(list(panels), 3.6, 2.3)
    for (of, layer), rows in panels.items():
        ax = axes[of, layer]
        plots.written_by_block(ax, rows)
        ax.set(title=f"{TITLES[of]}, direction of layer {layer}", xlabel="block", ylabel="s.d. of clean prompts")
    legend_below(figure, axes.values(), 3)
    return figure


def _heads(table: Table) -> Figure:
    panels = _by_panel(table)
    figure, axes = _grid(list(panels), 4.0, 3.3)
    for (of, layer), rows in panels.items():
        heatmaps.head_map(axes[of, layer], rows)
        axes[of, layer].set_title(f"{TITLES[of]}, direction of layer {layer}")
    return figure


def _tokens(table: Table) -> Figure:
    """The first two conversations: as they come of `with_and_without`, a prompt without the trigger and with it."""
    shown = list(dict.fromkeys(str(row["prompt"]) for row in table))[:2]
    figure, axes = panels(len(shown), (9.0, 3.4 * len(shown)), 1)
    for ax, prompt in zip(axes, shown, strict=True):
        rows = [row for row in table if row["prompt"] == prompt]
        last = max(int(row["position"]) for row in rows)
        heatmaps.layer_position_map(ax, [row for row in rows if int(row["position"]) > last - LONGEST])
        ax.set_title(prompt)
    return figure


def _questions(table: Table, families: dict[str, str]) -> Figure:
    figure, (ax,) = panels(1, (5.4, 4.8))
    heatmaps.cosine_matrix(ax, table, groups=families if len(set(families.values())) > 1 else None)
    ax.set_title(f"questions' directions, layer {table[0]['layer']}")
    return figure


def _left_out(table: Table, fixed_layers: Sequence[int]) -> Figure:
    names = {row["left_out"] for row in table}
    figure, (ax,) = panels(1, (5.4, 0.9 + 0.15 * len(names)))
    plots.left_out_margins(ax, [row for row in table if row["layer"] in fixed_layers])
    ax.set_xlabel("how far the others tell the left-out question's answers apart")
    return figure
