"""The results in this repository: their pages are rebuilt from compressed tables, figures and all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from defection.activations.basics.files import file_digest, read_json
from defection.experiments.commands.cli import app
from defection.experiments.study.tables import study_table
from typer.testing import CliRunner

RESULTS = Path(__file__).parents[3] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/summary.json"))
WITHDRAWN = {"controls_quiet", "controls_outside_null", "families_above_null", "reached"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_every_row_carries_the_choice_that_lies_beside_it(study: Path) -> None:
    summary = read_json(study / "summary.json")
    assert file_digest(study / "choice.json") == summary["choice_sha256"]
    for name in ("scores", "rates", "goal", "traffic"):
        rows = study_table(study, name)
        if name == "traffic" and not rows:  # a study without unlabelled traffic
            continue
        assert {(row["configuration"], row["choice"]) for row in rows} == {
            (summary["configuration"][:16], summary["choice_sha256"][:16])
        }
        assert "caught" in rows[0] or not WITHDRAWN & rows[0].keys()  # what `reached` rests on is asked since


def test_the_report_command_rebuilds_a_page_and_draws_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    shutil.copytree(RESULTS / "code", folder, ignore=shutil.ignore_patterns("figures"))
    said = CliRunner().invoke(app, ["report", str(folder)])
    assert said.exit_code == 0, said.output
    page = (folder / "report.html").read_text()
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert set(re.findall(r'<figure id="([^"]+)"><svg', page)) == drawn >= {"auroc-by-organism", "layers", "heatmap"}
    areas = [row["auroc"] for row in study_table(folder, "scores") if row["role"] == "test" and row["share"] is None]
    assert areas
    assert all(f"{area:.3f}" in page for area in areas if area is not None)

    kept, gone = (folder / "figures" / f"{name}.svg" for name in ("heatmap", "layers"))
    kept.write_text("<svg>as it was</svg>")
    drawn_before = gone.read_bytes()
    gone.unlink()
    assert CliRunner().invoke(app, ["report", str(folder)]).exit_code == 0
    assert kept.read_text() == "<svg>as it was</svg>"
    assert gone.read_bytes() == drawn_before
