"""Notebooks are kept as they were executed, since that is how the documentation shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LINES = 10


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert kinds
    assert "error" not in kinds
    assert path.stat().st_size < 600_000


def test_five_examples_take_ten_lines_each() -> None:
    _, *examples = code_cells(NOTEBOOKS[0])
    assert len(examples) == 5
    for cell in examples:
        assert len([line for line in cell["source"] if line.strip()]) <= LINES
        assert cell["outputs"]
