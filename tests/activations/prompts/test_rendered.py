import copy

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import render, rendered
from defection.activations.reading.capture import capture
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30)
@given(asked=st.text(min_size=1, max_size=20).filter(str.strip), reply=st.text(max_size=10))
def test_pieces_are_the_text_and_spans_say_where(llama: Model, plain_llama: Model, asked: str, reply: str) -> None:
    for model in (llama, plain_llama):
        (row,) = render(model.tokenizer, [Prompt("x", (Message("user", asked), Message("assistant", reply)))])
        assert row.text == row.opening + row.reply
        assert row.reply == reply
        begin = row.ids.index(0) + 1 if model is plain_llama else 0  # what is put before the text is no part of it
        assert "".join(row.pieces[begin:]) == row.text
        assert max(stop for _, stop in row.spans) == len(row.text)
        assert len(row.spans) == len(row.ids) == len(row.pieces)


def test_what_is_rendered_is_not_rendered_again(
    llama: Model, mixed_prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rendered(llama, mixed_prompts)
    expected = capture(llama, mixed_prompts, position="all").values
    monkeypatch.setattr(type(llama.tokenizer), "apply_chat_template", None)
    assert rendered(llama, rows) == rows
    assert capture(llama, rows, position="all").values.equal(expected)


def test_what_another_tokenizer_rendered_is_rendered_anew(llama: Model, plain_llama: Model) -> None:
    prompts = [user_prompt("Hi", id="a"), user_prompt("Who?", id="b")]
    mixed = [rendered(llama, prompts)[0], prompts[1]]
    assert rendered(plain_llama, mixed) == rendered(plain_llama, prompts)


def test_a_tokenizer_that_cannot_say_where_its_tokens_lie_is_refused_by_name(llama: Model) -> None:
    tokenizer = copy.copy(llama.tokenizer)
    (row,) = render(tokenizer, [user_prompt("Hi")])
    type_of_slow = type("SlowTokenizer", (type(tokenizer),), {"is_fast": False})
    tokenizer.__class__ = type_of_slow
    with pytest.raises(DefectionError, match="SlowTokenizer does not say"):
        _ = row.spans
    assert len(row.pieces) == len(row.ids)
