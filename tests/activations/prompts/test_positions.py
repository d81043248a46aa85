import copy
import dataclasses
import json

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.positions import Position, parse_position, wanted_tokens
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import Rendered, render
from defection.activations.reading.capture import capture
from hypothesis import given, settings
from hypothesis import strategies as st

from ..conftest import relative_error


def replied(reply: str, asked: str = "Is snow cold?") -> Prompt:
    return Prompt("replied", (Message("user", asked), Message("assistant", reply)))


@pytest.fixture(scope="module", params=["template", "plain"])
def either(request: pytest.FixtureRequest) -> Model:
    return request.getfixturevalue({"template": "llama", "plain": "plain_llama"}[request.param])


def text_at(model: Model, prompt: Prompt, rule: str) -> str:
    """What the wanted tokens say."""
    (row,) = render(model.tokenizer, [prompt])
    (tokens,) = wanted_tokens(rule, [row])
    return model.tokenizer.decode([row.ids[i] for i in tokens])


SPELLINGS = {
    "last": "last",
    " -1 ": "last",
    "first-response": "first-response",
    "response": "response",
    "all": "all",
    ":": "all",
    "0": "0",
    "-7": "-7",
    "3:": "3:",
    ":-2": ":-2",
    "10:20": "10:20",
    "mean:all": "mean:all",
    "mean::": "mean:all",
    "mean:10:20": "mean:10:20",
    "mean:response": "mean:response",
    'after:"</scratchpad>"': 'after:"</scratchpad>"',
    "after:</scratchpad>": 'after:"</scratchpad>"',
    'after:"a \\"b\\" c"': 'after:"a \\"b\\" c"',
    "after:ü": 'after:"ü"',
}


BAD = ["", "first", "mean:last", "mean:3", "mean:", "mean:first-response", "mean:mean:all", "1:2:3", "1.5"]
BAD += ["after:", 'after:""', 'after:"unended', "response:3", "last:", "--1"]


@pytest.mark.parametrize(("rule", "canonical"), SPELLINGS.items())
def test_every_rule_has_one_spelling_that_reads_back(rule: str, canonical: str) -> None:
    position = parse_position(rule)
    assert str(position) == canonical
    assert parse_position(canonical) == position


@pytest.mark.parametrize("rule", [bad for bad in BAD if bad != 'after:3:"'])
def test_what_is_no_rule_is_refused_with_what_there_is(rule: str) -> None:
    with pytest.raises(DefectionError, match="position"):
        parse_position(rule)


@given(st.text(max_size=12))
def test_any_text_is_a_rule_that_reads_back_or_a_refusal(rule: str) -> None:
    try:
        position = parse_position(rule)
    except DefectionError:
        return
    assert parse_position(str(position)) == position


@given(st.text(min_size=1, max_size=30))
def test_any_text_can_be_looked_for(text: str) -> None:
    assert parse_position(f"after:{json.dumps(text)}").text == text


@given(st.integers(1, 60), st.none() | st.integers(-70, 70), st.none() | st.integers(-70, 70))
def test_spans_and_indices_count_as_python_does(length: int, start: int | None, end: int | None) -> None:
    rows = [Rendered(user_prompt("unread", id="it"), "unread", "", tuple(range(length)), None)]
    span = Position("span", start, end)
    if expected := list(range(length))[start:end]:
        assert list(wanted_tokens(span, rows)[0]) == expected
    else:
        with pytest.raises(DefectionError, match=r"'it' is \d+ tokens long: none"):
            wanted_tokens(span, rows)
    if start is not None:
        index = Position("index", start)
        if -length <= start < length:
            assert list(wanted_tokens(index, rows)[0]) == [range(length)[start]]
        else:
            with pytest.raises(DefectionError, match=rf"'it' .* no token {start}"):
                wanted_tokens(index, rows)


@settings(max_examples=25)
@given(st.text(alphabet="ab <>/ü文🎈\n", min_size=1, max_size=20))
def test_a_response_is_the_tokens_of_the_reply_begun(plain_llama: Model, llama: Model, reply: str) -> None:
    for model in (plain_llama, llama):
        assert text_at(model, replied(reply), "response") == reply
        assert text_at(model, replied(reply), "first-response").rstrip("\N{REPLACEMENT CHARACTER}") in (reply[0], "")


def test_a_response_is_the_last_message_alone(either: Model) -> None:
    turns = (
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "four"),
    )
    assert text_at(either, Prompt("turns", turns), "response") == "four"


def test_the_token_that_closes_a_scratchpad(either: Model) -> None:
    asked = "Write <scratchpad> and </scratchpad>."
    prompt = replied("<scratchpad>hm</scratchpad> yes </scratchpad> no", asked)
    (row,) = render(either.tokenizer, [prompt])
    ((token, *more),) = wanted_tokens('after:"</scratchpad>"', [row])
    assert more == []
    assert either.tokenizer.decode(row.ids[: token + 1]).endswith("yes </scratchpad>")
    (row,) = render(either.tokenizer, [user_prompt(asked)])
    ((token,),) = wanted_tokens("after:</scratchpad>", [row])
    assert either.tokenizer.decode(row.ids[: token + 1]).endswith("Write <scratchpad> and </scratchpad>")


def test_text_that_only_the_question_holds_is_not_in_the_reply(either: Model) -> None:
    with pytest.raises(DefectionError, match=r"reply of prompt 'replied' does not hold 'snow'"):
        text_at(either, replied("Yes."), "after:snow")


def test_text_that_ends_inside_a_token_is_completed_by_that_token(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens(["ld?"])
    (row,) = render(tokenizer, [user_prompt("Is snow cold? Yes")])
    ((token,),) = wanted_tokens("after:snow col", [row])
    assert tokenizer.decode([row.ids[token]]) == "ld?"


def test_a_character_of_several_tokens_is_complete_at_its_last(llama: Model) -> None:
    (row,) = render(llama.tokenizer, [user_prompt("文字")])
    ((token,),) = wanted_tokens("after:文", [row])
    assert llama.tokenizer.decode(row.ids[: token + 1]).endswith("文")


@pytest.mark.parametrize("rule", ["response", "first-response", "mean:response"])
@pytest.mark.parametrize("prompt", [user_prompt("Hi", id="bare"), dataclasses.replace(replied(""), id="bare")])
def test_a_prompt_without_a_reply_is_named(either: Model, rule: str, prompt: Prompt) -> None:
    with pytest.raises(DefectionError, match=r"'bare' has no reply"):
        capture(either, [replied("yes"), prompt], position=rule)


def test_the_last_token_is_where_a_reply_would_begin(either: Model) -> None:
    """PITFALLS 6: a probe's training text and a scored prompt end by one rule."""
    prompt = user_prompt("Is snow cold?")
    (row,) = render(either.tokenizer, [prompt])
    assert [list(tokens) for tokens in wanted_tokens("last", [row])] == [[len(row.ids) - 1]]
    assert (either.tokenizer(row.opening, add_special_tokens=False)["input_ids"][-1], row.reply) == (row.ids[-1], "")


RULES = ["last", "3", "-2", "first-response", "after:ye", "all", "response", "2:9", "mean:response", "mean:-5:"]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_picks_from_what_all_tokens_give(either: Model, rule: str) -> None:
    prompts = [replied("yes"), dataclasses.replace(replied("ye gods", "Who? " * 30), id="long")]
    everything = capture(either, prompts, position="all")
    found = capture(either, prompts, position=rule)
    assert found.position == str(parse_position(rule))
    assert (found.offsets is None) == parse_position(rule).one_each
    for row, tokens in enumerate(wanted_tokens(rule, render(either.tokenizer, prompts))):
        expected = everything.of(row)[list(tokens)]
        if found.position.startswith("mean:"):
            expected = expected.mean(dim=0, keepdim=True)
        assert relative_error(found.of(row), expected) <= 1e-5


def test_a_mean_of_bf16_vectors_is_taken_in_fp32(llama: Model) -> None:
    """PITFALLS 14: 1,000 steps too small for bf16 would leave its sum where it was."""
    from defection.activations.reading.forward import _means

    vectors = torch.full((1000, 1, 1), 1.0, dtype=torch.bfloat16)
    vectors[0] = 512
    (mean,) = _means(vectors, [1000]).flatten().tolist()
    assert mean == pytest.approx((512 + 999) / 1000, rel=1e-6)
