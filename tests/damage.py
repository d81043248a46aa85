"""Files as no writer leaves them: cut off, flipped, or well-formed with another value somewhere inside."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

WILD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2,
    0.5,
    1e308,
    10**30,
    float("nan"),
    "",
    "x",
    "7",
    "a\0b",
    "\ud800",
    "../..",
    [],
    [0],
    ["x"],
    [[1, 2], [3]],
    {},
    {"x": 1},
    {"name": "x"},
)
TOKENS = ("-1", "0", "true", '"x"', '""', "[]", "[1]", '["x"]', "{}", "nan", "1e400", "1979-05-27", "9" * 5000)


def torn(content: bytes, rng: random.Random) -> bytes:
    """Some bytes lost, changed, doubled or put in."""
    if not content:
        return b"\xff"
    at = rng.randrange(len(content))
    other = rng.choice([b"\0", b"\xff\xfe", b"\xc3", b"\n", b'"', b"{", b"[" * 3000, b"9" * 5000, b"NaN"])
    return rng.choice(
        [
            b"",
            content[:at],
            content[at:],
            content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :],
            content[:at] + other + content[at:],
            content[:at] + content[: at + rng.randrange(1, 200)] + content[at:],
        ]
    )


def changed(value: Any, rng: random.Random) -> Any:
    """The JSON value with one of its values, at any depth, replaced, lost, renamed or doubled."""
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return rng.choice(WILD)
    depth = rng.randrange(max(map(len, places)) + 1)  # shallow values are few, and matter most
    path = rng.choice([p for p in places if len(p) <= depth] or places)
    return _put(value, path, rng)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        yield (*path, key)
        yield from _places(each, (*path, key))


def _put(value: Any, path: tuple[Any, ...], rng: random.Random) -> Any:
    copy = dict(value) if isinstance(value, dict) else list(value)
    first, *rest = path
    if rest:
        copy[first] = _put(copy[first], tuple(rest), rng)
        return copy
    kept = copy[first]
    match rng.randrange(6):
        case 0:
            del copy[first]
        case 1 if isinstance(copy, dict):
            copy[rng.choice(["x", f"{first} ", "name"])] = copy.pop(first)
        case 2 if isinstance(kept, list):
            copy[first] = rng.choice([kept + kept[:1], kept[:-1], kept[::-1], kept * 2])
        case _:
            copy[first] = rng.choice(WILD)
    return copy


def as_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file with one value changed, or torn."""
    if rng.random() < 0.15:
        return torn(content, rng)
    return json.dumps(changed(json.loads(content), rng)).encode()


def as_jsonl(content: bytes, rng: random.Random) -> bytes:
    """The same of one line of many."""
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.2:
        return torn(content, rng)
    return b"\n".join([*lines[:at], as_json(lines[at], rng), *lines[at + 1 :]]) + b"\n"


def as_text(content: bytes, rng: random.Random) -> bytes:
    """TOML or CSV with one line lost, doubled or torn, or another value behind an `=` or a comma."""
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    separator = "=" if "=" in lines[at] else ","
    fields = lines[at].split(separator)
    fields[rng.randrange(separator == "=" and len(fields) > 1, len(fields))] = rng.choice(TOKENS)
    other = rng.choice([[], [lines[at]] * 2, [separator.join(fields)], [separator.join(fields)], [lines[at], "[x]"]])
    return torn(content, rng) if rng.random() < 0.15 else "\n".join([*lines[:at], *other, *lines[at + 1 :]]).encode()


def as_gzip(content: bytes, rng: random.Random) -> bytes:
    """The same of a compressed CSV, or of its compressed bytes."""
    return torn(content, rng) if rng.random() < 0.3 else gzip.compress(as_text(gzip.decompress(content), rng), mtime=0)


def as_tensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file: torn, with another header, or with another value in the JSON that its header keeps."""
    length = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    about = header.get("__metadata__", {})
    kept = [name for name, text in about.items() if text[:1] in "{["]
    choice = rng.random()
    if choice < 0.1:
        return torn(content, rng)
    if choice < 0.7 and kept:
        name = rng.choice(kept)
        about[name] = json.dumps(changed(json.loads(about[name]), rng))
    elif choice < 0.9:
        header = _other_tensor(header, rng)
    else:
        header = changed(header, rng)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def _other_tensor(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One tensor under another name, in another shape or dtype of as many bytes."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    about = dict(header[name])
    count = about["data_offsets"][1] - about["data_offsets"][0]
    dtype, size = rng.choice([("F32", 4), ("I64", 8), ("BF16", 2), ("U8", 1), ("BOOL", 1)])
    about |= {"dtype": dtype, "shape": rng.choice([[count // size], [1, count // size], [count // size, 1, 1]])}
    renamed = rng.choice([name, name, name, "x"])
    return {**{key: value for key, value in header.items() if key != name}, renamed: about}
