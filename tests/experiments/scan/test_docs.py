"""The example of the how-to page runs as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...pages import enter_demo, run_example


def test_the_example_runs(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_demo(save_tiny("llama", seed=5), tmp_path, monkeypatch)
    found = run_example("scan.md")["found"]
    assert not found.found  # random weights hold no trigger
    assert found.p_value > 0
