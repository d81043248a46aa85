"""Safetensors files of our own: tensors, and in the header, under a name that says what the file is, JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, cast

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import DefectionError
from .typed import typed

H = TypeVar("H")


def read_headed(path: Path, name: str, header: type[H], version: int, what: str) -> tuple[H, dict[str, Tensor]]:
    """The JSON under `name`, of the TypedDict `header`, and the tensors of a file that `write_tensors` wrote.

    Raises DefectionError, in whose words the file is `what`: missing, damaged, of another kind or schema version.
    """
    with understood(path, what):
        try:
            with safe_open(str(path), framework="pt") as file:
                about = file.metadata() or {}
                if name not in about:
                    raise DefectionError(f"its header holds no {name!r}")
                record = json.loads(about[name])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError as error:
            raise DefectionError(f"no {what} at {path}") from error
        if isinstance(record, dict) and (found := record.get("schema_version")) != version:
            raise DefectionError(f"{path} has schema version {found!r:.80}, not {version}")
        return cast(H, typed(record, header, "its header")), tensors


@contextlib.contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """DefectionError, saying that `path` is no such file of this toolkit, for whatever reading it comes upon."""
    try:
        yield
    except DefectionError as error:
        if str(path) in str(error):
            raise
        raise DefectionError(f"{path} is no {what} written by this toolkit: {error}") from error
    except (
        *(SafetensorError, OSError, RecursionError, ArithmeticError),
        *(KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError),
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DefectionError(f"{path} is no {what} written by this toolkit ({reason})") from error
