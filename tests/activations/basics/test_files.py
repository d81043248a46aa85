import contextlib
import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch
from defection.activations.basics import files
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.files import (
    canonical,
    digest,
    file_digest,
    folder_written_aside,
    read_json,
    write_json,
    write_jsonl,
    write_tensors,
    write_text,
    written_aside,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

json_objects = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


class Killed(BaseException):
    """Stands for whatever ends a process in the middle of a write."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file with old content, alone in its folder."""
    path = tmp_path / "target.txt"
    path.write_text("old")
    return path


def assert_only_old(target: Path) -> None:
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_finished_write_replaces_the_file(target: Path) -> None:
    write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def write_half(target: Path, error: type[BaseException]) -> None:
    with written_aside(target) as aside:
        aside.write_text("half of the n")
        raise error


def fill_half(target: Path, error: type[BaseException]) -> None:
    with folder_written_aside(target) as aside:
        (aside / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, RuntimeError])
def test_a_write_that_is_cut_off_leaves_the_old_file(target: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(target, error)
    assert_only_old(target)


def test_a_full_disk_is_a_refusal_and_leaves_the_old_file(target: Path) -> None:
    with pytest.raises(DefectionError, match=r"target\.txt: No space left"), written_aside(target):
        raise OSError(28, os.strerror(28))
    assert_only_old(target)


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    """Training into a folder that led to another disk ended, all its work done, in a refusal."""
    link, far = tmp_path / "link", tmp_path / "disk" / "far"
    link.symlink_to(far)
    write_text(link, "a file, where there was none")
    assert far.read_text().startswith("a file")
    far.unlink()
    far.mkdir()
    (far / "old").touch()
    with folder_written_aside(link) as aside:
        (aside / "new").touch()
    assert [path.name for path in far.iterdir()] == ["new"]
    assert link.is_symlink()
    assert [path.name for path in far.parent.iterdir()] == ["far"]


def test_a_link_that_leads_to_itself_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(DefectionError, match="cannot write"):
        write_text(tmp_path / "link" / "file", "")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_after_the_content_leaves_the_old_file(
    target: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(DefectionError, match="Input/output"):
        write_text(target, "new")
    assert_only_old(target)


def test_content_reaches_the_disk_before_it_takes_the_name(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(files.os, step, lambda *args, s=step, r=real: (steps.append(s), r(*args)))
    write_text(target, "new")
    assert steps == ["fsync", "replace"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_a_file_in_the_place_of_a_folder_is_a_refusal(target: Path) -> None:
    with pytest.raises(DefectionError, match="cannot write"):
        write_text(target / "below.txt", "x")
    with pytest.raises(DefectionError, match="cannot write"), folder_written_aside(target / "below" / "folder"):
        pass


def test_written_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "any").write_text("x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


@pytest.mark.parametrize("error", [Killed, RuntimeError])
def test_a_folder_that_is_cut_off_does_not_appear(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fill_half(tmp_path / "folder", error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_cut_off_leaves_the_old_one(tmp_path: Path) -> None:
    old = tmp_path / "folder"
    old.mkdir()
    (old / "kept").write_text("x")
    with pytest.raises(Killed):
        fill_half(old, Killed)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]


def test_a_finished_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with folder_written_aside(tmp_path / "folder") as aside:
            (aside / name).write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "second"]


@given(value=json_objects)
def test_json_reads_back_equal(value: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_not_written(target: Path, number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"value": number})
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(target, [{"value": number}])
    assert_only_old(target)


@given(rows=st.lists(json_objects, max_size=4))
def test_json_lines_read_back_equal(rows: list[dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    write_jsonl(path, rows)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == rows


@given(data=st.binary(max_size=60) | json_objects.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_give_a_json_object_or_a_refusal(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    with contextlib.suppress(DefectionError):
        assert isinstance(read_json(path), dict)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", "[]", "null", "", '{"a": 1'])
def test_json_that_cannot_be_read_is_a_refusal(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DefectionError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_missing_json_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="does not exist"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(DefectionError, match="cannot read"):
        read_json(tmp_path)


@given(json_objects)
def test_equal_values_have_one_digest_whatever_the_order_of_keys(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical(backwards) == canonical(value)
    assert digest(backwards) == digest(value)


def test_different_values_have_different_digests() -> None:
    values = [{}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"b": 1}, {"a": None}]
    assert len({digest(value) for value in values}) == len(values)


def test_tensors_read_back_equal_even_when_they_are_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "t.safetensors", {"turned": whole.T, "part": whole[:, 1]}, {"about": "ü"})
    found = load_file(tmp_path / "t.safetensors")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[:, 1])


def test_a_full_disk_while_writing_tensors_is_a_refusal(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(DefectionError, match="No space left"):
        write_tensors(target, {"a": torch.zeros(1)})
    assert_only_old(target)


def test_a_file_digest_changes_with_any_byte(target: Path) -> None:
    before = file_digest(target)
    target.write_text("olD")
    assert file_digest(target) != before
