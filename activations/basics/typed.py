"""Values out of JSON or TOML as the types that a program declares; what does not fit is refused with its place."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from .errors import DefectionError

T = TypeVar("T")


def typed(value: object, hint: Any, where: str) -> Any:
    """The value as `hint` says: a plain type, `A | B`, Literal, list, tuple, dict, TypedDict or dataclass, nested.

    A list becomes a tuple where one is asked for, an integer a float. A TypedDict keeps keys that it does not name, a
    dataclass refuses them. Raises DefectionError that begins with `where`.

    Examples:
        >>> typed([1, 2], tuple[float, ...], "numbers")
        (1.0, 2.0)
    """
    kind = get_origin(hint) or hint
    if kind is Any:
        return value
    if is_typeddict(kind) or is_dataclass(kind):
        return _fields(value, kind, where)
    read = _READ.get(kind)
    return _scalar(value, kind, where) if read is None else read(value, kind, get_args(hint), where)


def _same(value: object, _kind: object, hints: Sequence[Any], where: str) -> Any:
    return typed(value, hints[0], where)


def _literal(value: object, _kind: object, allowed: Sequence[object], where: str) -> Any:
    if value not in allowed:
        raise DefectionError(f"{where} must be one of {', '.join(map(repr, allowed))}, not {_shown(value)}")
    return value


def _one_of(value: object, _kind: object, hints: Sequence[Any], where: str) -> Any:
    if value is None and NoneType in hints:
        return None
    others = [hint for hint in hints if hint is not NoneType]
    if len(others) == 1:
        return typed(value, others[0], where)
    for hint in sorted(others, key=lambda hint: type(value) is not hint):  # where integers may be, none becomes a float
        with contextlib.suppress(DefectionError):
            return typed(value, hint, where)
    raise _unlike(value, " or ".join(getattr(hint, "__name__", str(hint)) for hint in others), where)


def _items(value: object, kind: object, hints: Sequence[Any], where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise DefectionError(f"{where} must be a list, not {_shown(value)}")
    if kind is tuple and hints and Ellipsis not in hints:
        if len(value) != len(hints):
            raise DefectionError(f"{where} must hold {len(hints)} values, not {len(value)}")
        return tuple(typed(each, hint, where) for each, hint in zip(value, hints, strict=True))
    items = [typed(each, hints[0] if hints else Any, where) for each in value]
    return tuple(items) if kind is tuple else items


def _entries(value: object, _kind: object, hints: Sequence[Any], where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _unlike(value, "table", where)
    return {key: typed(each, hints[1] if hints else Any, f"{where}: {key!r}") for key, each in value.items()}


def _fields(value: object, kind: Any, where: str) -> Any:
    """A TypedDict or a dataclass of a mapping: none missing, every value of its type."""
    if not isinstance(value, Mapping):
        raise DefectionError(f"{where} is a {type(value).__name__}, not a table")
    hints = _hints(kind)
    if is_typeddict(kind):
        needed = {name for name in kind.__required_keys__ if get_origin(hints[name]) is not NotRequired}
    else:
        hints = {field.name: hints[field.name] for field in fields(kind) if field.init}
        needed = {f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING}
        refuse_unknown(value, hints, where)
    for name in hints:
        if name in needed and name not in value:
            raise DefectionError(f"{where} needs {name!r}")
    found = {key: typed(each, hints.get(key, Any), f"{where}: {key!r}") for key, each in value.items()}
    return found if is_typeddict(kind) else kind(**found)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def refuse_unknown(table: Mapping[str, object], known: Mapping[str, object] | set[str], where: str) -> None:
    """DefectionError for a key that is none of these."""
    if unknown := sorted(set(table) - set(known)):
        raise DefectionError(f"{where} has an unknown key {unknown[0]!r:.80}; it may hold {', '.join(sorted(known))}")


def _scalar(value: object, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _unlike(value, "float", where) from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        raise _unlike(value, kind.__name__, where)
    return value


def _unlike(value: object, wanted: str, where: str) -> DefectionError:
    return DefectionError(f"{where} must be of type {wanted}, not {_shown(value)}")


def _shown(value: object) -> str:
    """Short; a number of thousands of digits cannot even be written down."""
    return f"{value!r:.80}" if not isinstance(value, int) or abs(value) < 10**80 else "a number of more than 80 digits"


_READ: dict[object, Callable[[object, Any, Sequence[Any], str], Any]] = {
    **dict.fromkeys((Required, NotRequired), _same),
    **dict.fromkeys((UnionType, Union), _one_of),
    **dict.fromkeys((list, tuple, Sequence), _items),
    **dict.fromkeys((dict, Mapping), _entries),
    Literal: _literal,
}
