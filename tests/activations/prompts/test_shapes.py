"""Whatever shape a conversation comes in, the same prompt comes of it; what is not understood is named."""

from typing import Any

import numpy as np
import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.shapes import prompt_of
from hypothesis import given
from hypothesis import strategies as st

said = st.text(min_size=1, max_size=8).filter(str.strip)
conversations = st.builds(
    lambda system, turns, begun: (
        *((Message("system", system),) if system else ()),
        *(m for asked, told in turns for m in (Message("user", asked), Message("assistant", told))),
        Message("user", begun),
    ),
    st.none() | said,
    st.lists(st.tuples(said, said), max_size=2),
    said,
)
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def in_parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:1]}, {"type": "input_text", "text": text[1:]}]


def spellings(messages: tuple[Message, ...]) -> dict[str, Any]:
    openai = [{"role": m.role, "content": m.content} for m in messages]
    rest = messages[messages[0].role == "system" :]
    system = {} if rest == messages else {"system": messages[0].content}
    pairs = [[rest[i].content, rest[i + 1].content] for i in range(0, len(rest) - 1, 2)]
    return {
        "messages": list(messages),
        "OpenAI": openai,
        "OpenAI row": {"messages": openai},
        "parts": {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in openai]},
        "split parts": {"messages": [{**m, "content": in_parts(m["content"])} for m in openai]},
        "NumPy": {"messages": np.array(openai, dtype=object)},
        "TRL": {"prompt": openai, "completion": [{"role": "assistant", "content": "No."}]},
        "ShareGPT": {"conversations": [{"from": SHAREGPT[m.role], "value": m.content} for m in messages]},
        "ShareGPT, system apart": {
            "conversations": [{"from": SHAREGPT[m.role], "value": m.content} for m in rest],
            **system,
        },
        "WildChat": {"conversation": openai},
        "Alpaca": {"instruction": rest[-1].content, "input": "", "output": "No.", "history": pairs, **system},
    }


@given(conversations)
def test_every_spelling_of_a_conversation_is_the_same_prompt(messages: tuple[Message, ...]) -> None:
    found = {name: prompt_of(row, "row") for name, row in spellings(messages).items()}
    assert {name: prompt.messages for name, prompt in found.items()} == dict.fromkeys(found, messages)
    assert len({prompt.id for prompt in found.values()}) == 1


@given(said)
def test_a_text_is_a_user_prompt(text: str) -> None:
    assert prompt_of(text, "row") == prompt_of({"prompt": text}, "row") == user_prompt(text)


def test_what_an_instruction_is_about_follows_it() -> None:
    assert prompt_of({"instruction": "Translate.", "input": "Guten Tag"}, "row").text == "Translate.\n\nGuten Tag"


def test_a_reply_in_a_field_of_its_own_is_kept_and_not_asked() -> None:
    prompt = prompt_of({"prompt": "Why?", "completion": "So.", "chosen": "a", "topic": "t"}, "row")
    assert prompt.messages == (Message("user", "Why?"),)
    assert prompt.extra == {"completion": "So.", "chosen": "a", "topic": "t"}


def test_developer_is_openais_newer_word_for_system() -> None:
    rows = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert prompt_of(rows, "row").messages[0] == Message("system", "Be kind.")


REFUSED = {
    "image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "'image_url'.*leave that part"),
    "call": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
        "message 1 calls a tool.*end the conversation",
    ),
    "answer": ([{"role": "tool", "content": "3"}], "calls a tool or is its answer"),
    "observation": ({"conversations": [{"from": "observation", "value": "3"}]}, "calls a tool or is its answer"),
    "reasoning": ([{"role": "assistant", "content": "a", "thinking": "hm"}], "'thinking'.*'content'"),
    "role": ([{"role": "narrator", "content": "a"}], "'narrator'"),
    "no content": ([{"role": "user"}], "'content'"),
    "null content": ([{"role": "user", "content": None}], "must be a string, not NoneType"),
    "two systems": (
        {"system": "a", "messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "c"}]},
        "begins with a system message already",
    ),
    "late system": (
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        "system message stands after",
    ),
    "unknown": ({"question": "Why?"}, "'question'.*'conversations'.*'instruction'"),
    "number": (3, "is a int, not"),
    "nothing": ([], "nothing in it"),
    "both": ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "both"),
    "empty": ({"prompt": " "}, "is empty"),
    "NaN": ({"prompt": "a", "weight": float("nan")}, "nan"),
    "bytes": ({"prompt": "a", "image": b"x"}, "a bytes"),
    "history": ({"instruction": "a", "history": ["b"]}, "list of pairs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_shape_that_is_not_understood_is_named(name: str) -> None:
    row, sentence = REFUSED[name]
    with pytest.raises(DefectionError, match=f"(?s)^file row 7.*{sentence}"):
        prompt_of(row, "file row 7")


FIELDS = (
    *("role", "content", "from", "value", "prompt", "messages", "conversations", "instruction", "input"),
    *("history", "system", "id", "set", "type", "text", "tool_calls", "thinking"),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4)
words = st.sampled_from(["user", "system", "assistant", "gpt", "human", "tool", "text", "image"])


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    turns = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": inner}))
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner | words | turns, max_size=4)


wild = st.recursive(scalars | st.binary(max_size=2), grown, max_leaves=10)


@given(wild)
def test_anything_is_a_prompt_or_a_refusal(given_: Any) -> None:
    try:
        prompt = prompt_of(given_, "row")
    except DefectionError:
        return
    assert prompt_of(prompt.to_json(), "row") == prompt


def test_numpy_values_and_tuples_are_what_a_file_gives_back() -> None:
    extra = {"a": np.float32(0.5), "b": np.arange(2), "c": (1, "x"), "d": np.bool_(True), "e": np.str_("s")}
    prompt = Prompt("x", (Message("user", "Hi"),), extra=extra)
    assert prompt.extra == {"a": 0.5, "b": [0, 1], "c": [1, "x"], "d": True, "e": "s"}
    assert prompt_of(prompt.to_json(), "row") == prompt


@pytest.mark.parametrize(
    "broken",
    [
        lambda: user_prompt(""),
        lambda: user_prompt(" \n"),
        lambda: Prompt("x", ()),
        lambda: Prompt("x", (Message("system", "a"),)),
        lambda: Prompt("x", (Message("user", "a"), Message("system", "b"))),
        lambda: Message("tool", "a"),  # type: ignore[arg-type]
        lambda: Message("user", None),  # type: ignore[arg-type]
        lambda: Message("user", "\ud800"),
        lambda: Prompt("x", ({"role": "user", "content": "a"},)),  # type: ignore[arg-type]
        lambda: Prompt(3, (Message("user", "a"),)),  # type: ignore[arg-type]
        lambda: Prompt("x", (Message("user", "a"),), extra={"prompt": "b"}),
        lambda: Prompt("x", (Message("user", "a"),), extra={"weight": float("inf")}),
        lambda: Prompt("x", (Message("user", "a"),), extra={"when": object()}),
        lambda: Prompt("x", (Message("user", "a"),), extra={3: "b"}),  # type: ignore[dict-item]
    ],
)
def test_a_prompt_that_no_file_could_hold_cannot_be_made(broken: Any) -> None:
    with pytest.raises(DefectionError):
        broken()
