"""How an object that holds much is shown in a line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LONGEST = 48
"""Characters of a value."""


def shortened(value: DataclassInstance) -> str:
    """A dataclass with its fields, of which tensors are shown by their shape and long values by their beginning.

    For a class body: `__repr__ = shortened`.
    """
    said = ", ".join(f"{field.name}={_short(getattr(value, field.name))}" for field in fields(value) if field.repr)
    return f"{type(value).__name__}({said})"


def _short(value: object) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        kind = str(value.dtype).removeprefix("torch.")
        return f"<{'×'.join(map(str, value.shape)) or 'a number'}, {kind}>"
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
    if isinstance(value, Collection) and len(value) > 4:
        return f"<{len(value)} in a {type(value).__name__}>"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
