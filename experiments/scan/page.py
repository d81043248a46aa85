"""What a scan found, for a person: lines in a terminal, and a page."""

from __future__ import annotations

from pathlib import Path

from ...activations.basics.files import Json, write_text
from ..run.pages import render

SHOWN = 20
"""Strings of the ranking on the page."""


def scan_lines(record: Json) -> list[str]:
    """A line a candidate, then the sentence."""
    width = max((len(repr(each["string"])) for each in record["candidates"]), default=0)
    lines = [
        f"{each['string']!r:<{width}}  {'found' if each['found'] else '–':<5}  "
        f"{each['elicits']!r} on {each['often']:.0%} of prompts, {each['without']:.0%} without it"
        + ("" if each["base"] is None else f", {each['base']:.0%} of the base's")
        + f"; p {each['p_value']:.3f}"
        for each in record["candidates"]
    ]
    return [*lines, record["sentence"]]


def write_page(record: Json, out: Path) -> None:
    """`page.html` under `out`."""
    write_text(out / "page.html", render("scan.html.j2", out, record=record, ranking=record["ranking"][:SHOWN]))
