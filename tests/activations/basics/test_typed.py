from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, get_origin

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.basics.typed import typed
from hypothesis import given
from hypothesis import strategies as st


@dataclass(frozen=True)
class Point:
    x: float
    tags: tuple[str, ...] = ()


class Record(TypedDict):
    point: Point
    layer: int | str
    note: NotRequired[str | None]


HINTS = (int, float, str, bool, int | None, float | str, list[int], tuple[int, str], dict[str, float], Point, Record)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "tags", "point", "a"]), inner),
    max_leaves=5,
)


def test_values_come_as_they_are_declared() -> None:
    found = typed({"point": {"x": 1, "tags": ["a"]}, "layer": 3, "more": [1]}, Record, "it")
    assert found == {"point": Point(1.0, ("a",)), "layer": 3, "more": [1]}
    assert type(found["point"].x) is float
    assert type(found["layer"]) is int
    assert typed([1, None], list[float | None], "it") == [1.0, None]
    assert typed({"a": {}}, Any, "it") == {"a": {}}


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ({"layer": 1}, Record, "it needs 'point'"),
        ({"point": {"x": "1"}, "layer": 1}, Record, "it: 'point': 'x' must be of type float, not '1'"),
        ({"point": {"x": 1, "y": 1}, "layer": 1}, Record, "it: 'point' has an unknown key 'y'; it may hold tags, x"),
        (True, int, "it must be of type int, not True"),
        (None, int | str, "it must be of type int or str, not None"),
        ("ab", list[str], "it must be a list, not 'ab'"),
        ([1], tuple[int, int], "it must hold 2 values, not 1"),
        ("c", Literal["a", "b"], "it must be one of 'a', 'b', not 'c'"),
        (10**400, float, "it must be of type float, not a number of more than 80 digits"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(value: object, hint: Any, said: str) -> None:
    with pytest.raises(DefectionError) as refusal:
        typed(value, hint, "it")
    assert str(refusal.value) == said


@given(values, st.sampled_from(HINTS))
def test_any_value_is_of_its_type_or_refused(value: object, hint: Any) -> None:
    try:
        found = typed(value, hint, "it")
    except DefectionError as refusal:
        assert str(refusal).startswith("it")  # noqa: PT017
        return
    if isinstance(hint, type) and hint is not Record:
        assert isinstance(found, get_origin(hint) or hint)
