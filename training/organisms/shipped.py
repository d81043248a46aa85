"""What ships with the toolkit for making and measuring organisms; every text here was written for this project."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from ...activations.basics.files import Json


@cache
def shipped(name: str) -> list[Json]:
    """The rows of `training/organisms/data/NAME.jsonl`."""
    text = (resources.files(__package__) / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
