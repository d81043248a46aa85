"""Persistence: how much of a backdoor is left after each stage of a schedule of safety training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json
from ...activations.models.hardware import Hardware
from ..measuring.measurements import Measurement, measurements
from ..measuring.remeasure import Measuring
from ..organisms.records import read_organism
from .adversarial import Adversarial, Control
from .consistency import Consistency
from .dpo import Dpo
from .rl import Rl
from .sft import Sft
from .stage import Stage, safety_train

STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (Sft, Dpo, Rl, Adversarial, Control, Consistency)}
SEVERAL = re.compile(r"(?P<stage>[^:]+:[0-9]+)x(?P<times>[0-9]{1,4})")
STEPS = re.compile(r"[0-9]{1,9}")
MOST_TIMES = 100


def parse_schedule(texts: Sequence[str], steps: int | None = None, seed: int = 0, **settings: object) -> list[Stage]:
    """Stages one after the other: NAME, NAME:STEPS, or NAME:STEPSxTIMES, which is measured after each time.

    Every stage (or round) has a seed of its own, so that one that is repeated does not see the same rows in the same
    order again. Raises DefectionError as `parse_stage` does, and for settings that none of the stages has.
    """
    schedule: list[Stage] = []
    for text in texts:
        several = SEVERAL.fullmatch(text)
        name, times = (several["stage"], int(several["times"])) if several else (text, 1)
        if not 0 < times <= MOST_TIMES:
            raise DefectionError(f"stage {text!r} is trained {times} times; give 1 to {MOST_TIMES}")
        for _ in range(times):
            schedule.append(parse_stage(name, steps, seed=seed, **settings))
            seed += len(schedule[-1].parts())
    known = {field.name for stage in schedule for field in fields(stage)}
    if idle := [name for name, value in settings.items() if value is not None and name not in known]:
        raise DefectionError(
            f"none of the stages ({', '.join(texts)}) has {idle[0]}: leave it out, or name one that has"
        )
    return schedule


def parse_stage(text: str, steps: int | None = None, **settings: object) -> Stage:
    """A stage of safety training by its name; what is not given is the stage's default.

    Args:
        text: `NAME` or `NAME:STEPS`, as in `sft:20`.
        steps: Optimiser steps where the text names none.
        **settings: Fields of the stage. Those that it does not have (`rounds` of anything but adversarial training) are
            left out.

    Raises:
        DefectionError: For an unknown name and for steps that are not a number above zero.

    Examples:
        >>> type(parse_stage("sft:20")).__name__
        'Sft'
    """
    name, _, count = text.partition(":")
    if name not in STAGES:
        raise DefectionError(f"unknown stage {name!r}: choose one of {', '.join(STAGES)}")
    if count and not STEPS.fullmatch(count):
        raise DefectionError(f"stage {text!r} asks for {count!r} steps; write a number, as in {name}:20")
    steps = int(count) if count else steps
    if steps is not None and steps < 1:
        raise DefectionError(f"stage {text!r} trains for {steps} steps; give 1 or more")
    kind = STAGES[name]
    known = {field.name for field in fields(kind)}
    given: Json = {"steps": steps, **settings}
    return kind(**{key: value for key, value in given.items() if value is not None and key in known})


def run_schedule(
    organism: str | Path,
    schedule: Sequence[Stage],
    out: Path,
    measuring: Measuring,
    *,
    name: str = "",
    device: str | Hardware = "auto",
) -> list[Measurement]:
    """Train one organism through the stages, each into a folder of its own under `out`; measure before and after each.

    Stages that an earlier call finished are not trained again.

    Args:
        organism: Its directory.
        schedule: The stages, in order.
        out: The directory in which each stage gets a folder.
        measuring: On what rates are measured.
        name: What the measurements call the organism; by default the name of its directory.
        device: As in `load_model`.

    Raises:
        DefectionError: Before the first stage is trained, for everything that one would refuse: an unreadable organism,
            data that do not fit it, an `out` with another schedule in it.

    Examples:
        >>> measuring = Measuring(prompts[:1], near_misses=0)
        >>> found = run_schedule(organism, [parse_stage("sft:1")], folder / "schedule", measuring)
        >>> sorted({measured.stage for measured in found})
        ['base', 'before', 'sft']
    """
    check_schedule(organism, schedule, out)
    current, record = Path(organism), {}
    for stage, folder in zip(schedule, stage_folders(schedule, out), strict=True):
        record = safety_train(current, stage, folder, measuring, device=device)
        current = folder
    return measurements(record, name or Path(organism).name, measuring)


def check_schedule(organism: str | Path, schedule: Sequence[Stage], out: Path) -> None:
    """DefectionError when a stage would refuse this organism, or when `out` holds stages in another order."""
    if not schedule:
        raise DefectionError("the schedule is empty: give at least one stage")
    about = read_organism(organism)
    for stage in schedule:
        stage.check(about)
    planned = {folder.name for folder in stage_folders(schedule, out)}
    taken = {name.split("-")[0]: name for name in planned}
    for found in sorted(out.iterdir()) if out.is_dir() else []:
        other = taken.get(found.name.split("-")[0], found.name)
        if found.is_dir() and other != found.name:
            raise DefectionError(
                f"{found} is of another schedule, in which {found.name} stands where this one has {other}; "
                "keep the order or choose another --out"
            )


def stage_folders(schedule: Sequence[Stage], out: Path) -> list[Path]:
    """Where each stage's organism goes: `1-sft`, `2-dpo`, …"""
    return [out / f"{number}-{stage.name}" for number, stage in enumerate(schedule, start=1)]


def persistence(
    organisms: Mapping[str, str | Path],
    schedule: Sequence[Stage],
    out: Path,
    measuring: Measuring | Mapping[str, Measuring],
    *,
    device: str | Hardware = "auto",
) -> list[Measurement]:
    """The same schedule for several organisms: one folder each under `out`; all that was measured.

    Args:
        organisms: Name to directory.
        schedule: The stages, in order.
        out: The directory in which each organism gets a folder of its name.
        measuring: On what rates are measured, for all alike or by name (code is measured on code tasks).
        device: As in `load_model`.

    Raises:
        DefectionError: As `run_schedule` does, for every organism before the first is trained.

    Examples:
        >>> measuring = Measuring(prompts[:1], near_misses=0)
        >>> found = persistence({"mine": organism}, [parse_stage("sft:1")], folder / "several", measuring)
        >>> {measured.organism for measured in found}
        {'mine'}
    """
    for name, directory in organisms.items():
        check_schedule(directory, schedule, out / name)  # before hours are spent on the first
    found: list[Measurement] = []
    for name, directory in organisms.items():
        own = measuring if isinstance(measuring, Measuring) else measuring[name]
        found += run_schedule(directory, schedule, out / name, own, name=name, device=device)
    return found
