"""`defection report`: the page of results that are already on disk."""

from __future__ import annotations

from pathlib import Path

from . import options
from .plot import draw, is_study
from .printing import print_result


def report(folder: options.Results, as_json: options.AsJson = False) -> None:
    """Write report.html, one self-contained file, from the tables of a demo, sweep or study.

    Draws those figures first that are missing.

    Example: defection report runs/demo
    """
    draw(folder, again=False)
    from ..run.pages import results_of

    with results_of(folder):
        page = str(_page(folder))
    print_result({"report": page}, as_json, page)


def _page(folder: Path) -> Path:
    if is_study(folder):
        from ..study.report import write_study_report

        return write_study_report(folder)
    from ...activations.basics.files import read_json
    from ...training.organisms.build import versions
    from ..run.report import write_report

    recorded = folder / "demo.json" if (folder / "demo.json").exists() else folder / "preregistration.json"
    return write_report(folder, {"configuration": read_json(recorded), "versions": versions()})
