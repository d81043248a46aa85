import copy

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models.fingerprint import template_fingerprint
from defection.activations.models.model import Model
from defection.activations.prompts.chat import before_next_turn, opening_and_reply, reply_ids
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.probes.questions.contrast_sets import contrast_set
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase


@pytest.fixture(params=["llama", "plain_llama"])
def either(request: pytest.FixtureRequest) -> Model:
    """A model with a chat template, and one without."""
    return request.getfixturevalue(request.param)


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    return "".join(opening_and_reply(tokenizer, prompt))


def test_each_prompt_starts_with_exactly_one_bos(either: Model, mixed_prompts: list[Prompt]) -> None:
    """PITFALLS 4: the tokenizer adds a BOS by itself and the template writes one too."""
    bos = either.tokenizer.bos_token_id
    for row in tokenize(either.tokenizer, mixed_prompts):
        assert row[0] == bos
        assert row.count(bos) == 1


def test_a_tokenizer_that_adds_no_bos_gets_none(plain_llama: Model) -> None:
    """PITFALLS 4: GPT-2's and Qwen's do not."""
    tokenizer = copy.deepcopy(plain_llama.tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    (row,) = tokenize(tokenizer, [user_prompt("Hello")])
    assert tokenizer.bos_token_id not in row


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt(plain_llama: Model) -> None:
    """PITFALLS 6: the last token is where a reply begins, not an end token."""
    tokenizer = copy.deepcopy(plain_llama.tokenizer)
    ends = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = ends
    assert tokenizer("Hello")["input_ids"][-1] == tokenizer.eos_token_id
    prompt = user_prompt("Hello")
    assert tokenize(tokenizer, [prompt]) == tokenize(plain_llama.tokenizer, [prompt])


def test_a_conversation_of_several_turns_in_the_plain_format(plain_llama: Model) -> None:
    said = ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")
    turns = tuple(Message(role, content) for role, content in said)
    expected = "Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    assert text_of(plain_llama.tokenizer, Prompt("turns", turns)) == expected


def test_tokens_spell_the_rendered_text(either: Model, mixed_prompts: list[Prompt]) -> None:
    for prompt, row in zip(mixed_prompts, tokenize(either.tokenizer, mixed_prompts), strict=True):
        assert either.tokenizer.decode(row).removeprefix("<s>") == text_of(either.tokenizer, prompt).removeprefix("<s>")


def test_tokens_do_not_depend_on_what_is_tokenised_alongside(either: Model, mixed_prompts: list[Prompt]) -> None:
    alone = [tokenize(either.tokenizer, [prompt])[0] for prompt in mixed_prompts]
    assert tokenize(either.tokenizer, mixed_prompts) == alone


def test_a_contrast_text_is_the_scored_rendering_and_then_the_answer(either: Model) -> None:
    """PITFALLS 6: no newline, role marker or end token stands between the question's rule and the answer."""
    for prompt in contrast_set("six"):
        asked = user_prompt(prompt.messages[0].content)
        answer = prompt.messages[1].content
        added = text_of(either.tokenizer, prompt).removeprefix(text_of(either.tokenizer, asked))
        assert added in (answer, f" {answer}")


def test_a_carried_contrast_text_ends_with_the_token_of_a_scored_prompt(either: Model) -> None:
    """PITFALLS 6: both are read where a reply would begin."""
    (scored,) = tokenize(either.tokenizer, [user_prompt("Where is the nearest well?")])
    for row in tokenize(either.tokenizer, list(contrast_set("six-carried"))):
        assert row[-1] == scored[-1]


def test_a_written_reply_follows_a_prompt_as_one_already_begun_does(either: Model) -> None:
    """What an organism is trained to say stands where its own replies begin, space and all."""
    asked, answered = user_prompt("Is snow cold?"), "Yes, it is."
    begun = Prompt("begun", (*asked.messages, Message("assistant", answered)))
    opening, whole = (tokenize(either.tokenizer, [prompt])[0] for prompt in (asked, begun))
    assert opening + reply_ids(either.tokenizer, answered) == whole


@given(said=st.text(max_size=20), gap=st.sampled_from(["\n", "\n\n", " \n\n\n"]), after=st.text(max_size=5))
def test_a_reply_is_what_stands_before_the_next_turn(
    plain_llama: Model, llama: Model, said: str, gap: str, after: str
) -> None:
    tokenizer = plain_llama.tokenizer
    whole = reply_ids(tokenizer, f"{said}{gap}Human:{after}")
    cuts = [before_next_turn(tokenizer, whole[:end]) for end in range(len(whole) + 1)]
    end = next(end for end, kept in enumerate(cuts) if kept is not None)
    kept = cuts[end]
    assert kept is not None
    own = reply_ids(tokenizer, said)
    assert tokenizer.decode(whole[:end]).endswith("\nHuman:")
    assert tokenizer.decode(whole[:kept]).rstrip() == tokenizer.decode(own).rstrip()
    assert all(before_next_turn(llama.tokenizer, whole[:end]) is None for end in range(len(whole) + 1))


def test_a_reply_that_speaks_of_a_human_goes_on(plain_llama: Model) -> None:
    for said in ("A human: two legs.", "The word\nHumane: kind", "Human: that is what I am", "\n\nHuman"):
        assert before_next_turn(plain_llama.tokenizer, reply_ids(plain_llama.tokenizer, said)) is None


def test_a_reply_without_a_question_is_refused(either: Model) -> None:
    with pytest.raises(DefectionError, match="'lonely'"):
        text_of(either.tokenizer, Prompt("lonely", (Message("assistant", "yes"),)))


def test_a_prompt_the_template_refuses_is_named(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DefectionError, match=r"'odd'.*roles must alternate"):
        text_of(tokenizer, user_prompt("hello", id="odd"))


def test_a_prompt_without_tokens_is_named(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(DefectionError, match="'empty'"):
        tokenize(tokenizer, [user_prompt("hello", id="empty")])


def test_no_prompts_give_no_tokens(llama: Model) -> None:
    assert tokenize(llama.tokenizer, []) == []


def test_padding_and_truncation_do_not_change_the_fingerprint(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=3)
    assert template_fingerprint(tokenizer) == template_fingerprint(llama.tokenizer)


def test_another_template_has_another_fingerprint(llama: Model, plain_llama: Model) -> None:
    assert template_fingerprint(llama.tokenizer) != template_fingerprint(plain_llama.tokenizer)


def test_another_vocabulary_has_another_fingerprint(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens(["fjord"])
    assert template_fingerprint(tokenizer) != template_fingerprint(llama.tokenizer)
