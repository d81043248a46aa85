"""Values as a JSON file would give them back: no NumPy, no tuples, no NaN, no half characters."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any


class NotPlain(ValueError):
    """Says what a value holds that JSON cannot."""


def plain(value: object) -> Any:
    """The same value in the types that `json` reads: dict, list, str, int, float, bool, None.

    NumPy arrays and scalars, tensors, tuples and dates become lists, numbers and text. Raises NotPlain for all else.

    Examples:
        >>> plain({"when": (1, 2)})
        {'when': [1, 2]}
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise NotPlain("a value that is nested too deeply") from error


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return _scalar(value)
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise NotPlain(f"the field name {strange[0]!r}, which is no text")
        return {_scalar(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy's, PyTorch's
        return _plain(value.tolist())
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise NotPlain(f"a {type(value).__name__}, which JSON does not have")


def _scalar(value: str | float | bool | None) -> str | float | bool | None:
    """The same of a subclass: NumPy's float64 is a float, its str_ a str."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise NotPlain(f"the number {float(value)}, which JSON does not have")
        return float(value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NotPlain(f"half of a surrogate pair at character {error.start}, which is no text") from error
    return str(value)
