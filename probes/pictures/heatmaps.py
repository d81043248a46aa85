"""Heat maps, each drawn from a tidy table on the axes it is given: cosines, transfers, scores by layer and position.

One diverging scale for all: blue below, white at what means nothing (0, or an AUROC of ½), vermilion above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from .plots import Table, column, tidy

DIVERGING = LinearSegmentedColormap.from_list("defection", ["#003C67", "#0072B2", "#FFFFFF", "#D55E00", "#6B2E00"])
WRITTEN_OUT = 12
"""Matrices up to this many rows have their numbers written in the cells."""
SLANTED = 8
"""Columns up to which they have labels, slanted; more of them are numbered as the rows are."""
FULL_LABELS = 60

Values = NDArray[np.float64]


def cosine_matrix(ax: Axes, table: Table, *, groups: Mapping[str, str] | None = None) -> AxesImage:
    """Cosine of every two directions, at one layer. Columns: a, b, cosine (`QuestionDirections.pairs`, `cosine_table`).

    `groups` gives each name a group (a question's family): neighbours of one group are framed, and named as one.
    """
    names = _names(table, "a")
    if groups:
        names.sort(key=lambda name: list(dict.fromkeys(groups.values())).index(groups[name]))
    image = _draw(ax, _matrix(table, "a", "b", "cosine", names, names), limit=1.0, middle=0.0, label="cosine")
    if groups:
        _frame_groups(ax, [groups[name] for name in names])
    else:
        _name_ticks(ax, names, names)
        _write_numbers(ax, image)
    return image


def transfer_matrix_map(ax: Axes, table: Table) -> AxesImage:
    """AUROC of every model's probe on every model, on one test set, with its interval.

    Columns: fitted_on, scored_on, auroc, auroc_low, auroc_high (`TransferRow`). Framed: a model's own probe.
    """
    rows = tidy(table)
    image = auroc_map(ax, rows, "fitted_on", "scored_on", intervals=True)
    ax.set(xlabel="scored on", ylabel="probe fitted on")
    fitted, scored = _names(rows, "fitted_on"), _names(rows, "scored_on")
    for i, j in ((i, scored.index(name)) for i, name in enumerate(fitted) if name in scored):
        _frame(ax, j, i, 1)
    return image


def auroc_map(ax: Axes, table: Table, down: str, across: str, *, intervals: bool = False) -> AxesImage:
    """AUROC by two columns of a table, `down` and `across`, each once in their order; what has no row is left white.

    Columns: those, auroc, and with `intervals` auroc_low and auroc_high, in square cells that have room for them.
    """
    rows, names = tidy(table), (_names(table, down), _names(table, across))
    image = _draw(
        ax, _matrix(rows, down, across, "auroc", *names), limit=0.5, middle=0.5, label="AUROC", equal=intervals
    )
    _name_ticks(ax, *names)
    for row in rows:
        i, j = names[0].index(str(row[down])), names[1].index(str(row[across]))
        write = partial(ax.text, ha="center", va="center", color=_ink(float(row["auroc"]), 0.5, 0.5))
        write(j, i - 0.08 * intervals, f"{row['auroc']:.2f}", fontsize=9 if intervals else 8)
        if intervals:
            write(j, i + 0.25, f"{row['auroc_low']:.2f}–{row['auroc_high']:.2f}", fontsize=6.5)
    return image


def layer_position_map(ax: Axes, table: Table) -> AxesImage:
    """Scores at every layer and token of one conversation. Columns: layer, position, token, score (`token_scores`).

    Colours end at the 99th percentile of the scores' size.
    """
    rows = tidy(table)
    layers = sorted({int(row["layer"]) for row in rows})
    tokens = dict(sorted({int(row["position"]): str(row["token"]) for row in rows}.items()))
    values = _matrix(rows, "layer", "position", "score", layers, list(tokens))
    end = float(np.nanquantile(np.abs(values), 0.99))
    image = _draw(ax, values, limit=end or 1.0, middle=0.0, label="score", equal=False)
    ax.invert_yaxis()  # the stream flows upwards
    step = max(1, len(layers) // 8)
    ax.set(yticks=range(0, len(layers), step), ylabel="layer (output of block)")
    ax.set_yticklabels([str(layer) for layer in layers[::step]])
    if len(tokens) <= FULL_LABELS:
        ax.set_xticks(range(len(tokens)), [_visible(token) for token in tokens.values()], rotation=90, fontsize=7)
    else:
        ax.set_xlabel("token")
    return image


def head_map(ax: Axes, table: Table) -> AxesImage:
    """What each head and MLP writes along a direction, in standard deviations of clean prompts' scores.

    Columns: kind, block, head, value (`Attribution.separating`).
    """
    rows = [row for row in tidy(table) if row["kind"] in ("head", "mlp")]
    heads = 1 + max((int(row["head"]) for row in rows if row["kind"] == "head"), default=-1)
    blocks = sorted({int(row["block"]) for row in rows})
    values = np.full((len(blocks), heads + 1), np.nan)
    for row in rows:
        values[blocks.index(int(row["block"])), heads if row["kind"] == "mlp" else int(row["head"])] = row["value"]
    end = float(np.nanmax(np.abs(values)))
    image = _draw(ax, values, limit=end or 1.0, middle=0.0, label="s.d. of clean prompts", equal=False)
    ax.invert_yaxis()
    ax.axvline(heads - 0.5, color="black", lw=0.8)
    ax.set(xticks=range(heads + 1), ylabel="block", xlabel="head")
    ax.set_xticklabels([*map(str, range(heads)), "MLP"])
    step = max(1, len(blocks) // 8)
    ax.set_yticks(range(0, len(blocks), step), [str(block) for block in blocks[::step]])
    return image


def _names(table: Table, name: str) -> list[str]:
    """The different values of a column, in order."""
    return list(dict.fromkeys(map(str, column(table, name).tolist())))


def _matrix(
    table: Table, row: str, col: str, value: str, rows: Sequence[str | int], cols: Sequence[str | int]
) -> Values:
    """The table as a matrix; a pair that is missing is left white."""
    i = {name: number for number, name in enumerate(rows)}
    j = {name: number for number, name in enumerate(cols)}
    matrix = np.full((len(rows), len(cols)), np.nan)
    matrix[[i[n] for n in column(table, row).tolist()], [j[n] for n in column(table, col).tolist()]] = column(
        table, value
    )
    return matrix


def _draw(ax: Axes, values: Values, *, limit: float, middle: float, label: str, equal: bool = True) -> AxesImage:
    image = ax.imshow(
        values,
        cmap=DIVERGING,
        vmin=middle - limit,
        vmax=middle + limit,
        aspect="equal" if equal else "auto",
        interpolation="nearest",
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0)
    # Inside the axes' own box, so that it is as high as the map whatever the map's shape.
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.045, 1.0)), label=label)
    bar.ax.spines["outline"].set_visible(False)
    return image


def _name_ticks(ax: Axes, rows: Sequence[str], cols: Sequence[str]) -> None:
    if len(cols) > SLANTED and list(rows) == list(cols):  # narrow columns have room for numbers alone
        ax.set_yticks(range(len(rows)), [f"{name}  {number}" for number, name in enumerate(rows, start=1)])
        ax.set_xticks(range(len(cols)), [str(number) for number in range(1, len(cols) + 1)])
        return
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xticks(range(len(cols)), list(cols), rotation=40, ha="right", rotation_mode="anchor")


def _write_numbers(ax: Axes, image: AxesImage) -> None:
    values = np.asarray(image.get_array())
    if len(values) > WRITTEN_OUT:
        return
    for (i, j), value in np.ndenumerate(values):
        text = f"{round(float(value), 2) + 0.0:.2f}".replace("-", "−")  # + 0.0: no minus before a nought
        ax.text(j, i, text, ha="center", va="center", color=_ink(float(value), 0.0, 1.0), fontsize=7.5)


def _ink(value: float, middle: float, limit: float) -> str:
    """Black or white, whichever is read on the colour of a value."""
    return "white" if abs(value - middle) > 0.45 * limit else "black"


def _frame_groups(ax: Axes, groups: Sequence[str]) -> None:
    starts = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    centres = [(a + b - 1) / 2 for a, b in pairwise(starts)]
    names = [groups[start] for start in starts[:-1]]
    for a, b in pairwise(starts):
        _frame(ax, a + (b - a - 1) / 2, a + (b - a - 1) / 2, b - a)
    ax.set_yticks(centres, names)
    ax.set_xticks(centres, names, rotation=40, ha="right", rotation_mode="anchor")


def _frame(ax: Axes, x: float, y: float, size: float) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x - size / 2, y - size / 2), size, size, fill=False, ec="black", lw=0.9, clip_on=False))


def _visible(token: str) -> str:
    """A token as a label: spaces and line breaks can be seen, and a dollar sign is no formula."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("$", r"\$")[:14]
