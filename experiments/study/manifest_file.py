"""A study's TOML file: what a person can get wrong in it is refused in one sentence with file, table and key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar, get_type_hints

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json
from ...activations.basics.typed import refuse_unknown, typed
from ...activations.prompts.loading import load_prompts, shipped_sets
from ...probes import Evidence, Rule, contrast_set
from ...probes.estimators.registry import estimator, estimators
from ...probes.statistics.calibration import ALARMS, least_clean_prompts
from ...training.organisms.behaviours import BEHAVIOURS
from ...training.organisms.build import RECIPES
from ...training.organisms.pairs import CODE_SETS
from ...training.organisms.triggers import parse_trigger
from .candidates import QUANTILE, Candidate, layers_by_rule
from .manifest import (
    DEVELOPMENT,
    ROLES,
    STUDY_MANIFEST_SCHEMA,
    TEST,
    Block,
    Choice,
    Family,
    Goal,
    StudyManifest,
    Traffic,
)

T = TypeVar("T")


def read_study_manifest(path: str | Path, families: Sequence[str] = ()) -> StudyManifest:
    """Read a study; `families` are `NAME=PATH`, which give a declared family its file, or add a test family.

    Raises DefectionError that names file, table and key: broken TOML, an unknown or missing key, a wrong type, an
    unknown trigger, behaviour, recipe, probe or question set, one organism or prompt family in two roles.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError as error:
        raise DefectionError(f"no study at {file}: give a TOML file, as in experiments/study/manifests") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DefectionError(f"{file} is not a readable TOML file: {error}") from error
    manifest = parse_manifest(table, str(file), file.parent)
    for given in families:
        manifest = _with_family(manifest, given)
    for organism in manifest.organisms:
        if not any(family.shows(organism.behaviour) for family in manifest.families_for(organism)):
            raise DefectionError(
                f"{file}: organism {organism.name!r} can show its behaviour on none of the {organism.role} families "
                "that have prompts; add one, or name the behaviour in its 'behaviours'"
            )
    return manifest


def parse_manifest(table: Mapping[str, object], where: str, folder: Path = Path()) -> StudyManifest:
    """The manifest that a table holds; see `read_study_manifest`."""
    known = {"schema_version", "organisms", *(f.name for f in fields(StudyManifest) if f.name != "folder")}
    refuse_unknown(table, known, where)
    if table.get("schema_version") != STUDY_MANIFEST_SCHEMA:
        raise DefectionError(
            f"{where} needs schema_version = {STUDY_MANIFEST_SCHEMA}, not {table.get('schema_version')!r}"
        )
    blocks = _rows(Block, table, "organisms", where)
    values: Json = {key: value for key, value in table.items() if key not in ("schema_version", "organisms")}
    values |= {"families": _rows(Family, table, "families", where)}
    values |= {"candidates": _rows(Candidate, table, "candidates", where)}
    tables: dict[str, type[object]] = {"choice": Choice, "goal": Goal, "traffic": Traffic, "verdict": Rule}
    for key, kind in tables.items():
        if key in table:
            values[key] = typed(table[key], kind, f"{where}, [{key}]")
    plain = {f.name for f in fields(StudyManifest)} - {"organisms", "families", "candidates", *tables}
    hints = get_type_hints(StudyManifest)
    for key in plain & set(values):
        values[key] = typed(values[key], hints[key], f"{where}: {key!r}")
    if "name" not in values:
        raise DefectionError(f"{where} needs a 'name'")
    organisms = tuple(organism for block in blocks for organism in block.organisms())
    manifest = StudyManifest(**{**values, "organisms": organisms, "folder": folder})
    _check(manifest, where)
    return manifest


def _check(manifest: StudyManifest, where: str) -> None:
    _check_grid(manifest, where)
    for family in manifest.families:
        _check_family(family, where)
    for name in (manifest.clean, *manifest.calibration):
        if name not in shipped_sets():
            raise DefectionError(
                f"{where}: clean prompts come of a shipped set ({', '.join(shipped_sets())}), not {name!r}"
            )
    if not manifest.calibration:
        raise DefectionError(f"{where}: an alarm needs 'calibration' prompts, of one shipped set at least")
    names = [family.name for family in manifest.families]
    _refuse_repeated(names, f"{where}: family")
    _refuse_repeated([candidate.name for candidate in manifest.candidates], f"{where}: candidate")
    if not manifest.candidates:
        raise DefectionError(f"{where} needs at least one [[candidates]]")
    for candidate in manifest.candidates:
        _check_candidate(candidate, manifest, where)
        contrast_set(candidate.contrast)
        layers_by_rule(candidate.layers, 24)
    if manifest.choice.rule not in ("best-worst", "best-mean", "fixed"):
        raise DefectionError(f"{where}: unknown rule {manifest.choice.rule!r}: best-worst, best-mean or fixed")
    chosen = manifest.choice.rule != "fixed"
    if chosen and not (manifest.of_role(DEVELOPMENT) and any(f.role == DEVELOPMENT for f in manifest.families)):
        raise DefectionError(
            f"{where}: rule {manifest.choice.rule!r} chooses on development organisms and families, but there are "
            "none; add some, or fix the first candidate with [choice] rule = 'fixed'"
        )
    for name in manifest.traffic.families:
        if name not in [family.name for family in manifest.families if family.role == DEVELOPMENT]:
            raise DefectionError(f"{where}: traffic comes of family {name!r}, which is no development family of it")
    if manifest.traffic.shares and not manifest.traffic.families:
        raise DefectionError(f"{where}: [traffic] needs 'families' to be drawn from")
    if any(not 0 <= share < 1 for share in manifest.traffic.shares):
        raise DefectionError(f"{where}: [traffic] shares lie between 0 and 1")


def _check_candidate(candidate: Candidate, manifest: StudyManifest, where: str) -> None:
    if candidate.estimator not in estimators() or not candidate.sees_traffic:
        estimator(candidate.estimator)  # whose refusal lists the known ones
    elif manifest.choice.share not in manifest.traffic.shares:
        raise DefectionError(
            f"{where}: candidate {candidate.name!r} sees traffic; [traffic] needs 'shares', and among them the "
            f"{manifest.choice.share} at which it is compared"
        )
    if candidate.alarm not in ALARMS:
        raise DefectionError(
            f"{where}: candidate {candidate.name!r} has an unknown alarm {candidate.alarm!r}: {', '.join(ALARMS)}"
        )
    calm = sum(len(load_prompts(name)) for name in set(manifest.calibration))
    if candidate.alarm == QUANTILE and calm < (needed := least_clean_prompts(manifest.goal.fpr)):
        raise DefectionError(
            f"{where}: candidate {candidate.name!r} has the alarm {QUANTILE!r}, which takes {needed} 'calibration' "
            f"prompts to promise an fpr of {manifest.goal.fpr:g}; there are {calm}"
        )
    if not candidate.clean and Evidence.CLEAN in estimators()[candidate.estimator].needs:
        raise DefectionError(f"{where}: candidate {candidate.name!r} cannot do without clean prompts")


def _check_grid(manifest: StudyManifest, where: str) -> None:
    if not manifest.of_role(TEST):
        raise DefectionError(f"{where} needs [[organisms]] of role 'test'")
    for organism in manifest.organisms:
        _refuse_role(organism.role, f"{where}, [[organisms]]")
        if not parse_trigger(organism.trigger).text:
            raise DefectionError(f"{where}: an organism of a study needs a trigger")
        try:
            organism.config()
        except DefectionError as error:
            raise DefectionError(f"{where}, organism {organism.name!r}: {error}") from error
        if organism.recipe not in RECIPES or any(RECIPES[organism.recipe][-1:]):
            raise DefectionError(
                f"{where}: recipe {organism.recipe!r} cannot be studied, since prompts are read where the reply begins "
                "without a scratchpad; use standard or distilled"
            )
    # A twin training run must never be both what a choice was made on and what it is judged on.
    _refuse_repeated([organism.name for organism in manifest.organisms], f"{where}: organism")


def _check_family(family: Family, where: str) -> None:
    spot = f"{where}, family {family.name!r}"
    _refuse_role(family.role, spot)
    if not family.name or not all(c.isalnum() or c in "-_." for c in family.name):
        raise DefectionError(f"{spot}: a name holds letters, digits, '-', '_' and '.'")
    unknown = [name for name in (*family.behaviours, *family.negatives_for) if name not in BEHAVIOURS]
    if unknown:
        raise DefectionError(f"{spot}: unknown behaviour {unknown[0]!r}: choose of {', '.join(BEHAVIOURS)}")


def _refuse_role(role: str, where: str) -> None:
    if role not in ROLES:
        raise DefectionError(f"{where}: role is development or test, not {role!r}")


def _refuse_repeated(names: Sequence[str], what: str) -> None:
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            raise DefectionError(f"{what} {name!r} is there more than once")


def _with_family(manifest: StudyManifest, given: str) -> StudyManifest:
    name, equals, path = given.partition("=")
    if not (name and equals and path):
        raise DefectionError(f"--family takes NAME=PATH, not {given!r}")
    absolute = path if path in (*shipped_sets(), *CODE_SETS) else str(Path(path).resolve())
    families = list(manifest.families)
    for place, family in enumerate(families):
        if family.name == name:
            families[place] = replace(family, prompts=absolute)
            return replace(manifest, families=tuple(families))
    added = Family(name, TEST, absolute)
    _check_family(added, "--family")
    return replace(manifest, families=(*families, added))


def _rows(kind: type[T], table: Mapping[str, object], key: str, where: str) -> tuple[T, ...]:
    rows = table.get(key, [])
    if not isinstance(rows, list):
        raise DefectionError(f"{where}: {key!r} is a list of tables, written [[{key}]]")
    return tuple(typed(row, kind, f"{where}, [[{key}]] number {number}") for number, row in enumerate(rows, 1))
