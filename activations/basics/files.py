"""Files that are either whole or absent: written aside, flushed, then renamed over the target."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from safetensors.torch import save_file

from .errors import DefectionError
from .typed import typed

Json = dict[str, Any]
T = TypeVar("T")


@contextlib.contextmanager
def written_aside(target: Path, room: Path | None = None, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `target`, or in the folder `room` of the same file system; on success flush it to
    disk and rename it into place. Without `flush` a loss of power, though not a kill, may leave half of it.

    A link stays one: the file that it leads to is written. Raises DefectionError when the disk is full or the folder
    cannot be written; the target is then untouched.
    """
    handle = None
    try:
        place = Path(os.path.realpath(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        (room or place.parent).mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=".tmp", dir=room or place.parent)
        os.close(descriptor)
        handle = Path(name)
        yield handle
        if flush:
            _sync(handle)
        umask = os.umask(0)
        os.umask(umask)
        handle.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(handle, place)
    except OSError as error:
        raise DefectionError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another --out"
        ) from error
    finally:
        if handle is not None:
            handle.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_aside(target: Path) -> Iterator[Path]:
    """Like `written_aside` for a whole directory, which must not exist yet or is replaced whole."""
    try:
        place = Path(os.path.realpath(target))
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise DefectionError(f"cannot write {target}: {error.strerror or error}; choose another --out") from error
    try:
        yield aside
        umask = os.umask(0)
        os.umask(umask)
        for made in aside.rglob("*"):  # safetensors writes files that only their owner can read
            made.chmod((0o777 if made.is_dir() else 0o666) & ~umask)
        aside.chmod(0o777 & ~umask)
        if place.exists():
            shutil.rmtree(place)
        os.replace(aside, place)
    except OSError as error:
        raise DefectionError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` (UTF-8) so that a reader sees the old file or the new one, never half."""
    write_bytes(target, (text.encode("utf-8"),))


def write_bytes(
    target: Path, pieces: Iterable[bytes | memoryview], room: Path | None = None, *, flush: bool = True
) -> None:
    """Write `pieces` one after the other, without joining them in memory first; see `written_aside`."""
    with written_aside(target, room, flush=flush) as aside, open(aside, "wb", buffering=0) as file:
        for piece in pieces:
            left = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
            while left:  # one call of the system writes 2 GiB at most
                left = left[file.write(left) :]
        if not flush:
            _set_going(file.fileno())


def _set_going(descriptor: int) -> None:
    """Have the disk begin with what was written, without waiting for it: the flush to come then finds little left.

    Linux begins when told that pages are no longer needed; those it has not written yet stay in memory all the same.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(folder: Path, names: Iterable[str]) -> None:
    """Flush some files of a folder, and their names, so that they outlive a loss of power."""
    try:
        for name in names:
            _sync(folder / name)
        _sync(folder)
    except OSError as error:
        raise DefectionError(
            f"cannot write to {folder}: {error.strerror or error}; free some space or choose another --out"
        ) from error


def _sync(path: Path) -> None:
    windows = os.name == "nt"
    if windows and path.is_dir():  # which flushes names by itself, and files that may be written to
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(target: Path, value: Mapping[str, object]) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, since JSON has neither."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(target: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line; NaN and infinity are refused here too."""
    write_text(target, jsonl(rows))


def jsonl(rows: Iterable[Mapping[str, object]]) -> str:
    """One JSON object a line; NaN and infinity are refused."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_tensors(target: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whose header holds `header` (strings to strings)."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_aside(target) as aside:
        try:
            save_file(contiguous, str(aside), metadata=dict(header or {}))
        except OSError:
            raise
        except Exception as error:  # safetensors wraps a full disk in an error class of its own
            if "os error" in str(error).lower():
                raise OSError(str(error)) from error
            raise


@overload
def read_json(path: Path) -> Json: ...
@overload
def read_json(path: Path, kind: type[T]) -> T: ...
def read_json(path: Path, kind: Any = dict) -> Any:
    """Read a JSON object, of a TypedDict where there is a `kind`; DefectionError names the file and what is wrong."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DefectionError(f"{path} line {error.lineno} is not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, nesting too deep
        if isinstance(error, DefectionError):
            raise
        raise DefectionError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DefectionError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return typed(value, kind, str(path))


def read_jsonl(path: Path, kind: type[T]) -> list[T]:
    """The lines of a file that `write_jsonl` wrote, each of a TypedDict or dataclass; DefectionError names the line."""
    lines = enumerate(read_text(path).split("\n"), start=1)  # a string may hold other ends of lines that Python knows
    return [
        typed(parse_json_line(line, f"{path} line {number}"), kind, f"{path} line {number}")
        for number, line in lines
        if line
    ]


def whole_lines(path: Path, kind: type[T]) -> list[T]:
    """The lines of a file that grows by one at a time; what was cut off, or is no such line, is left out."""
    found: list[T] = []
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError, RecursionError):  # DefectionError among them
            entry = typed(json.loads(line), kind, "")
            found += [entry] if line.endswith("\n") else []
    return found


def read_text(path: Path) -> str:
    """What a UTF-8 file holds; DefectionError where it is missing, cannot be read, or is no such text."""
    try:
        with readable(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DefectionError(f"{path} is not UTF-8 text (byte {error.start})") from error


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """DefectionError for a file that turns out to be missing, or cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DefectionError(f"{path} does not exist") from error
    except OSError as error:
        raise DefectionError(f"cannot read {path}: {error.strerror or error}") from error


def parse_json_line(line: str, where: str) -> Any:
    """The value on one line of a JSONL file; DefectionError that begins with `where` when it is no valid JSON."""
    try:
        value = json.loads(line)
        canonical(value)  # NaN or half a surrogate pair could not be written again
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise DefectionError(f"{where} is not valid JSON: {getattr(error, 'msg', error)}") from error
    return value


def canonical(value: object) -> bytes:
    """The same bytes for equal JSON values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def digest(value: object) -> str:
    """SHA-256 (hex) of a JSON value in canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
