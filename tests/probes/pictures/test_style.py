from __future__ import annotations

from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.probes.pictures.style import interval_dot, legend_below, panels, save_figure


def test_panels_fill_lines_and_what_is_left_over_stays_empty() -> None:
    figure, axes = panels(5, (6, 4), 3, sharey=True)
    assert len(axes) == 5
    assert figure.axes[:5] == axes
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False]
    assert panels(2, (6, 4), 3)[1][1].get_subplotspec().get_gridspec().ncols == 2


@pytest.mark.parametrize("black", [False, True])
def test_one_legend_names_what_any_panel_shows_once(black: bool) -> None:
    figure, axes = panels(2, (4, 2))
    for ax, names in zip(axes, (("a", "b"), ("b", "c")), strict=True):
        for name in names:
            ax.plot([0, 1], [0, 1], color="#D55E00", label=name)
    legend_below(figure, axes, 3, black=black)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    assert {line.get_color() for line in legend.get_lines()} == {"black" if black else "#D55E00"}
    assert {line.get_color() for ax in axes for line in ax.lines} == {"#D55E00"}


def test_a_dot_lies_in_its_interval() -> None:
    _, (ax,) = panels(1, (2, 2))
    interval_dot(ax, {"auroc": 0.7, "auroc_low": 0.6, "auroc_high": 0.9}, 3, "black", "s", lw=1.0, mfc="white")
    line, dot = ax.lines
    assert (list(line.get_xdata()), list(line.get_ydata()), line.get_linewidth()) == ([0.6, 0.9], [3, 3], 1.0)
    assert (dot.get_xdata()[0], dot.get_marker(), dot.get_markerfacecolor()) == (0.7, "s", "white")


def test_a_figure_is_written_in_the_formats_asked_for(tmp_path: Path) -> None:
    figure, _ = panels(1, (1, 1))
    assert save_figure(figure, tmp_path / "both") == tmp_path / "both.png"
    assert save_figure(figure, tmp_path / "one", ("svg",)) == tmp_path / "one.svg"
    assert {path.name for path in tmp_path.iterdir()} == {"both.png", "both.svg", "one.svg"}


def test_a_figure_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DefectionError, match="cannot write"):
        save_figure(panels(1, (1, 1))[0], tmp_path / "file" / "figure")
