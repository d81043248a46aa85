"""Terminals that are not UTF-8, no home, a cache that cannot be written: a sentence, or the command works as ever."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from defection.activations import cache
from defection.activations.basics.errors import DefectionError
from defection.activations.models import embedded
from defection.experiments.commands.cli import main


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def test_a_terminal_of_ascii_alone_is_written_to(llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache(llama, ["Hi"], "störe")
    shown = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert ended("store", "show", "störe") == 0
    assert rb"st\xf6re" in shown.getvalue()
    assert ended("store", "show", "nur störe") == 2
    assert b"is not a store" in shown.getvalue()


def without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEFECTION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)


def test_without_a_home_the_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], llama_folder: Path, tmp_path: Path
) -> None:
    without_a_home(monkeypatch)
    assert ended("models") == 2
    assert "DEFECTION_CACHE" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hi"}')
    store = str(tmp_path / "store")
    assert ended("cache", str(llama_folder), str(tmp_path / "p.jsonl"), "--out", store, "--device", "cpu") == 0


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DefectionError, match=r"cannot keep fetched models in .*set DEFECTION_CACHE"):
        embedded.ensure_embedded(embedded.SMOLLM2_135M)
