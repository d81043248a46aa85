"""The results of a study in a folder: tables, figures, a report page, a Markdown table, and a summary."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, read_json, write_json, write_text
from ...training.organisms.build import versions
from .choice import CHOICE
from .figures import save_study_figures
from .grid import Study
from .manifest import TEST
from .report import write_study_report
from .summary import caught_table, leagues, markdown_table, sentences, verdict_sentences
from .tables import GOAL, VERDICTS, tables_of, write_tables

SUMMARY = "summary.json"
RESULTS_SCHEMA = 1


def write_results(study: Study, folder: Path, command: str) -> Json:
    """Write everything that has been measured so far; give what `summary.json` holds.

    Raises DefectionError when no test organism has been measured.
    """
    tables = tables_of(study)
    if not tables[GOAL]:
        raise DefectionError(f"{study.out} holds no measured test organism yet; run the study first")
    organisms = {row["organism"]: bool(row["has_backdoor"]) for row in tables[GOAL]}
    missing = [cell.organism.name for cell in study.cells(TEST) if not study.is_finished(cell)]
    table = leagues(tables[GOAL], organisms)
    goal = asdict(study.manifest.goal)
    about: Json = {
        "study": study.manifest.name,
        "configuration": study.configuration,
        "choice_sha256": study.choice,
        "command": command,
    }
    verdicts = caught_table(tables[VERDICTS])
    said = [*verdict_sentences(verdicts), *sentences(table, organisms, goal)]
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
