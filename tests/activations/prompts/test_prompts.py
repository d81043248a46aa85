import contextlib
import json
from pathlib import Path

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.prompts.loading import load_prompts, parse_prompts, shipped_sets
from defection.activations.prompts.prompts import (
    RESERVED,
    Message,
    Prompt,
    by_set,
    last_user,
    replace_last_user,
    user_prompt,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

wild_text = st.text(st.characters())
"""Halves of surrogate pairs included, which `st.text()` leaves out."""


def json_of(numbers: st.SearchStrategy[float], texts: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=8,
    )


json_values = json_of(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=10))
wild_json = json_of(st.floats(), wild_text)
contents = st.text(max_size=30)
turns = st.builds(Message, st.sampled_from(["user", "assistant"]), contents)
conversations = st.tuples(
    st.lists(st.builds(Message, st.just("system"), contents), max_size=1), st.lists(turns, min_size=1, max_size=4)
).map(lambda parts: (*parts[0], *parts[1]))
readable = conversations.filter(lambda said: any(m.content.strip() for m in said if m.role != "system"))
prompts_strategy = st.lists(
    st.builds(
        Prompt,
        id=st.text(max_size=8),
        messages=readable,
        set=st.none() | st.text(max_size=5),
        extra=st.dictionaries(st.text(max_size=6).filter(lambda key: key not in RESERVED), json_values, max_size=3),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda prompt: prompt.id,
)


def prompts_or_refusal(text: str) -> None:
    try:
        prompts = parse_prompts(text, "file")
    except DefectionError:
        return
    lines = [line for line in text.removeprefix("\ufeff").split("\n") if line.strip()]
    assert len(prompts) == len(lines)


@given(wild_text)
def test_any_text_gives_a_prompt_a_line_or_a_refusal(text: str) -> None:
    prompts_or_refusal(text)


@given(data=st.binary(max_size=200))
def test_any_bytes_in_a_file_give_prompts_or_a_refusal(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(DefectionError):
        assert load_prompts(path)


messages_like = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "system", "assistant", "tool"]) | wild_json,
            "content": wild_json,
        },
    ),
    max_size=3,
)
rows_like = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=3) | wild_json,
        "set": st.text(max_size=3) | wild_json,
        "prompt": wild_json,
        "messages": messages_like | wild_json,
        "topic": wild_json,
    },
)


@given(st.lists(wild_json | rows_like, max_size=4), st.booleans())
def test_any_json_lines_give_a_prompt_a_line_or_a_refusal(rows: list[object], ascii_only: bool) -> None:
    prompts_or_refusal("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows))


@given(prompts_strategy)
def test_what_to_json_writes_reads_back_equal(prompts: list[Prompt]) -> None:
    text = "\n".join(json.dumps(prompt.to_json(), ensure_ascii=False) for prompt in prompts)
    assert parse_prompts(text, "file") == prompts


@given(wild_text)
def test_every_accepted_line_can_be_written_as_utf8(text: str) -> None:
    line = json.dumps({"id": text, "set": text, "prompt": "x", text: text})
    try:
        (prompt,) = parse_prompts(line, "file")
    except DefectionError:
        return
    json.dumps(prompt.to_json(), ensure_ascii=False).encode("utf-8")


def test_a_repeated_id_is_refused_with_both_lines() -> None:
    text = '{"id": "a", "prompt": "x"}\n\n{"id": "a", "prompt": "y"}'
    with pytest.raises(DefectionError, match=r"line 3.*'a'.*line 1"):
        parse_prompts(text, "file")


def test_an_id_made_for_a_line_may_not_repeat_a_written_one() -> None:
    with pytest.raises(DefectionError, match="line-2"):
        parse_prompts('{"id": "line-2", "prompt": "x"}\n{"prompt": "y"}', "file")


@pytest.mark.parametrize("text", ["", "\n", "  \n\t\n", "\ufeff"])
def test_a_file_without_prompts_is_refused(text: str) -> None:
    with pytest.raises(DefectionError, match="holds no prompts"):
        parse_prompts(text, "file")


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": ""}',
        '{"prompt": " \\n"}',
        '{"prompt": null}',
        '{"prompt": "a", "messages": []}',
        '{"messages": []}',
        '{"messages": [{"role": "system", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": " "}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}',
        '{"messages": [{"role": ["user"], "content": "a"}]}',
        '{"id": 1.5, "prompt": "a"}',
        '{"id": true, "prompt": "a"}',
        '{"set": 3, "prompt": "a"}',
        '{"prompt": "\\ud800"}',
        '{"prompt": "a", "id": "\\ud800"}',
        '{"prompt": "a", "topic": "\\udfff"}',
        '{"prompt": "a", "weight": NaN}',
        '{"prompt": "a", "weight": 1e999}',
        '["prompt"]',
        "null",
        "{",
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(DefectionError, match="file line 2"):
        parse_prompts('{"prompt": "good"}\n' + line, "file")


def test_a_number_too_long_for_python_is_a_refusal() -> None:
    with pytest.raises(DefectionError, match="line 1"):
        parse_prompts('{"prompt": "a", "id": ' + "1" * 5000 + "}", "file")


def test_nesting_too_deep_for_python_is_a_refusal() -> None:
    with pytest.raises(DefectionError, match="line 1"):
        parse_prompts("[" * 100_000, "file")


def test_line_breaks_other_than_line_feed_may_stand_in_a_prompt() -> None:
    said = "one\u2028two\x85three\x0bfour"
    (prompt,) = parse_prompts(json.dumps({"prompt": said}, ensure_ascii=False), "file")
    assert prompt.text == said


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('\ufeff{"prompt": "a"}\r\n{"prompt": "b"}\r\n'.encode())
    assert [prompt.text for prompt in load_prompts(path)] == ["a", "b"]


def test_what_a_line_holds_besides_is_kept() -> None:
    (prompt,) = parse_prompts('{"prompt": "a", "topic": "ferns", "shape": [1]}', "file")
    assert prompt.topic == "ferns"
    assert prompt.extra == {"topic": "ferns", "shape": [1]}


def test_a_prompt_without_a_topic_is_a_cluster_of_its_own() -> None:
    assert user_prompt("a", id="x").topic == "x"


@pytest.mark.parametrize("name", shipped_sets())
def test_every_shipped_set_loads_and_carries_its_name(name: str) -> None:
    prompts = load_prompts(name)
    assert {prompt.set for prompt in prompts} == {name}


def test_shipped_sets_share_no_prompt() -> None:
    texts = [prompt.text for name in shipped_sets() for prompt in load_prompts(name)]
    assert len(texts) == len(set(texts))


def test_a_missing_file_is_refused_with_what_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="held-out"):
        load_prompts(tmp_path / "absent.jsonl")


def test_a_folder_is_not_a_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="cannot read"):
        load_prompts(tmp_path)


@given(readable, st.text(min_size=1).filter(str.strip))
def test_only_the_last_user_message_is_replaced(said: tuple[Message, ...], text: str) -> None:
    prompt = Prompt("a", said)
    if not any(message.role == "user" for message in said):
        with pytest.raises(DefectionError, match="no user message"):
            replace_last_user(prompt, text)
        with pytest.raises(DefectionError, match="no user message"):
            last_user(prompt)
        return
    changed = replace_last_user(prompt, text)
    assert last_user(changed) == text
    assert replace_last_user(changed, last_user(prompt)) == prompt


def test_rows_are_grouped_by_set_in_order_of_appearance() -> None:
    prompts = [Prompt(str(i), (Message("user", "x"),), name) for i, name in enumerate(["b", "a", None, "b"])]
    assert by_set(prompts) == {"b": [0, 3], "a": [1], "prompts": [2]}


FILES = 1_500
broken_lines = st.sampled_from(
    [
        b"",
        b" \t",
        b"\r",
        b"{",
        b'{"prompt": "torn',
        b'{"prompt": "a"} trailing',
        b'{"prompt": "a", "prompt": 3}',
        b"\xff\xfe",
        b'{"prompt": "\xc3"}',
        b'{"prompt": "\\ud800"}',
        b"\x00",
        b"NaN",
        b"[" * 5000,
        b'{"prompt": ' + b"9" * 5000 + b"}",
        b'{"prompt": "' + b"long " * 20_000 + b'"}',
        '{"prompt": "one\u2028two\u2029three\x85four"}'.encode(),
        '\ufeff{"prompt": "a mark of its own"}'.encode(),
        b'{"prompt": "nul \\u0000 inside"}',
        b'{"id": "a", "prompt": "x"}',
        b'{"id": 7, "prompt": "x"}',
    ]
)
json_lines = (wild_json | rows_like).map(lambda row: json.dumps(row).encode())
good_lines = contents.filter(str.strip).map(lambda said: json.dumps({"prompt": said}, ensure_ascii=False).encode())
lines_of_a_file = st.lists(broken_lines | json_lines | good_lines | good_lines | good_lines, max_size=4)


@pytest.mark.slow
@given(lines=lines_of_a_file, end=st.sampled_from([b"\n", b"\r\n"]), mark=st.sampled_from([b"", b"\xef\xbb\xbf"]))
@settings(max_examples=FILES, suppress_health_check=list(HealthCheck), database=None)
def test_a_thousand_files_and_more_give_a_prompt_a_line_or_a_refusal_that_names_it(
    lines: list[bytes], end: bytes, mark: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Never a traceback, never a line dropped."""
    path = tmp_path_factory.getbasetemp() / "many.jsonl"
    path.write_bytes(mark + end.join(lines))
    filled = [number for number, line in enumerate(lines, start=1) if line.decode("utf-8", "replace").strip()]
    try:
        prompts = load_prompts(path)
    except DefectionError as refusal:
        said = str(refusal)
        assert said.startswith(str(path))
        if filled:
            number = int(said.removeprefix(f"{path} line ").split(" ")[0].rstrip(":"))
            assert number in filled
        return
    assert [f"line-{number}" for number in filled if b'"id"' not in lines[number - 1]] == [
        prompt.id for prompt in prompts if prompt.id.startswith("line-")
    ]
    assert len(prompts) == len(filled)


@pytest.mark.parametrize("source", ["x" * 300, "d/" * 3000, "a\0b", "\ud800", "", ".", "held-out/x"])
def test_a_path_that_cannot_be_is_a_refusal(source: str) -> None:
    with pytest.raises(DefectionError, match=r"cannot read|no prompts at") as refusal:
        load_prompts(source)
    assert len(str(refusal.value)) < 400
