"""What a long run keeps: made once, and made again where the file no longer holds what was written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from defection.activations import DefectionError
from defection.experiments.run.journal import Journal

NAMES = [{"what": "rate", "layer": layer} for layer in range(3)]


def fill(path: Path, key: str = "run") -> list[int]:
    """Ask for three objects; give the layers of those that were not kept."""
    journal, made = Journal(path, key), []
    for name in NAMES:

        def make(layer: int = int(str(name["layer"]))) -> dict[str, object]:
            made.append(layer)
            return {"rates": [0.1 * layer, math.nan], "layer": layer}

        found = journal.kept(name, make)
        assert found["layer"] == name["layer"]
        assert math.isnan(found["rates"][1])
    return made


def test_what_was_kept_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert fill(path) == [0, 1, 2]
    assert fill(path) == []
    assert fill(path, "another run") == [0, 1, 2]
    assert fill(path) == []


@pytest.mark.parametrize("change", ["torn", "another value", "another kind", "unsealed", "no object"])
def test_what_is_no_longer_what_was_written_is_made_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "journal.jsonl"
    fill(path)
    lines = path.read_text().splitlines()
    line = json.loads(lines[1])
    if change == "another value":
        line["found"]["rates"][0] = 0.7
    elif change == "another kind":
        line["found"] = {}
    elif change == "unsealed":
        del line["seal"]
    lines[1] = {"torn": lines[1][:40], "no object": "7"}.get(change, json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    assert fill(path) == [1]
    assert fill(path) == []


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DefectionError, match="choose another folder"):
        Journal(tmp_path / "file" / "journal.jsonl", "run").kept(NAMES[0], lambda: pytest.fail("made for nothing"))
