"""The results of a study in a folder: tables, figures, a report page, a Markdown table, and a summary."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, read_json, write_json, write_text
from ...training.organisms.build import versions
from .choice import CHOICE
from .detected import detected_sentences, detected_table
from .figures import save_study_figures
from .grid import Study
from .manifest import TEST
from .report import write_study_report
from .summary import caught_table, leagues, markdown_table, sentences, verdict_sentences
from .tables import DETECTORS, GOAL, VERDICTS, Row, study_table, tables_of, write_tables

SUMMARY = "summary.json"
RESULTS_SCHEMA = 1


def write_results(study: Study, folder: Path, command: str, beside: Sequence[Path] = ()) -> Json:
    """Write everything that has been measured so far; give what `summary.json` holds.

    `beside` are folders of results of the same study that was run elsewhere: organisms that are not measured here
    stand in the tables as those have them. They are read before anything is written, so `folder` may be one of them.
    Raises DefectionError when no test organism has been measured, and for results of another manifest or choice.
    """
    tables = tables_of(study)
    here = {row["organism"] for row in tables[GOAL]}
    for other in beside:
        _add(study, tables, other)
    if not tables[GOAL]:
        raise DefectionError(f"{study.out} holds no measured test organism yet; run the study first")
    organisms = {row["organism"]: bool(row["has_backdoor"]) for row in tables[GOAL]}
    unfinished = [cell.organism.name for cell in study.cells(TEST) if not study.is_finished(cell)]
    missing = [name for name in unfinished if name in here or name not in organisms]
    table = leagues(tables[GOAL], organisms)
    goal = asdict(study.manifest.goal)
    about: Json = {
        "study": study.manifest.name,
        "configuration": study.configuration,
        "choice_sha256": study.choice,
        "command": command,
    }
    verdicts = caught_table(tables[VERDICTS])
    unasked = detected_table(tables[DETECTORS])
    said = [*verdict_sentences(verdicts), *sentences(table, organisms, goal), *detected_sentences(unasked)]
    summary: Json = {
        "schema_version": RESULTS_SCHEMA,
        **about,
        "sentence": " ".join(said),
        "sentences": said,
        "goal": goal,
        "organisms": organisms,
        "missing": missing,
        "families_without_prompts": [family.name for family in study.manifest.families if not family.prompts],
        "leagues": table,
        "verdicts": verdicts,
        "detectors": unasked,
        "chosen": read_json(study.out / CHOICE),
        "manifest": study.manifest.to_json(),
        "versions": versions(),
    }
    write_tables(tables, folder)
    shutil.copyfile(study.out / CHOICE, folder / CHOICE)
    write_json(folder / SUMMARY, summary)
    write_text(folder / "table.md", markdown_table(table, study.manifest.name, study.configuration))
    save_study_figures(folder)
    write_study_report(folder)
    return summary


def _add(study: Study, tables: dict[str, list[Row]], folder: Path) -> None:
    """Put what another run found out about other organisms into the tables, in the order of the manifest."""
    left = read_json(folder / SUMMARY)
    if (left.get("configuration"), left.get("choice_sha256")) != (study.configuration, study.choice):
        raise DefectionError(
            f"{folder} holds results of another study: its manifest, its prompts or what was chosen differ from those "
            f"of {study.out}"
        )
    order = {organism.name: place for place, organism in enumerate(study.manifest.organisms)}
    known = {row["organism"] for rows in tables.values() for row in rows}
    for name, rows in tables.items():
        if (folder / f"{name}.csv.gz").exists():
            rows += [row for row in study_table(folder, name) if row["organism"] not in known]
        rows.sort(key=lambda row: order.get(row["organism"], len(order)))
