import copy
import dataclasses

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading import generate
from defection.activations.reading.batching import REPLYING_COST, Batch, plan_batches
from defection.activations.reading.capture import capture
from defection.activations.reading.generate import end_tokens, greedy_replies, reply_to_batch
from transformers import GenerationConfig

from ..conftest import OUT_OF_MEMORY, Memory

NEW_TOKENS = 12


def replies_in_order(model: Model, prompts: list[Prompt], **options: int) -> list[list[int]]:
    replies: dict[int, list[int]] = {}
    for batch in greedy_replies(model, prompts, max_new_tokens=NEW_TOKENS, **options):
        replies |= batch
    return [replies[row] for row in range(len(prompts))]


def hugging_face_replies(model: Model, prompts: list[Prompt]) -> list[list[int]]:
    """One prompt at a time, without padding."""
    ends = end_tokens(model).tolist()
    replies = []
    for row in tokenize(model.tokenizer, prompts):
        tokens = torch.tensor([row])
        written = model.network.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=GenerationConfig(
                max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=2
            ),
        )[0, len(row) :].tolist()
        replies.append(written[:-1] if written[-1] in ends else written)
    return replies


@pytest.fixture(scope="module")
def chatty(tiny: Model) -> Model:
    """Many tokens end a reply, so that replies of one batch end at different steps."""
    model = copy.copy(tiny)
    model.network = copy.deepcopy(tiny.network)
    model.__dict__.pop("blocks", None)  # cached: the blocks of the network it was copied from
    model.network.generation_config.eos_token_id = list(range(0, 262, 9))
    return model


@pytest.mark.parametrize("max_tokens", [1, 3072])
def test_greedy_replies_are_those_of_hugging_face_one_at_a_time(
    tiny: Model, mixed_prompts: list[Prompt], max_tokens: int
) -> None:
    """PITFALLS 1 and 2: padding between prompt and reply changes nothing, nor does a shared prefix."""
    assert replies_in_order(tiny, mixed_prompts, max_tokens=max_tokens) == hugging_face_replies(tiny, mixed_prompts)


class Scripted:
    """A vocabulary matrix that spells a text, a byte a step, whatever the residuals are."""

    def __init__(self, model: Model, text: str) -> None:
        self.size = len(model.tokenizer)
        self.text = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.steps = 0

    def __call__(self, network: object, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self.size)
        logits[:, self.text[self.steps]] = 1
        self.steps += 1
        return logits


@pytest.mark.parametrize("max_new_tokens", [19, 14, 13, 8])
@pytest.mark.parametrize("text", [" Yes.\n\nHuman: And now?", " No human: none at all, none"])
def test_a_reply_in_the_plain_format_ends_where_the_next_turn_begins(
    plain_llama: Model, monkeypatch: pytest.MonkeyPatch, text: str, max_new_tokens: int
) -> None:
    head = Scripted(plain_llama, text)
    monkeypatch.setattr(generate, "own_logits", head)
    ((said,),) = [
        batch.values() for batch in greedy_replies(plain_llama, [user_prompt("?")], max_new_tokens=max_new_tokens)
    ]
    turn = text[:max_new_tokens].find("\n\nHuman")  # cut off between "Human" and the colon it is a turn just the same
    assert plain_llama.tokenizer.decode(said) == text[: turn if turn >= 0 else max_new_tokens]
    assert head.steps == (min(turn + len("\n\nHuman:"), max_new_tokens) if turn >= 0 else max_new_tokens)


def test_replies_of_every_family_are_those_of_hugging_face_one_at_a_time(
    every_model: Model, mixed_prompts: list[Prompt]
) -> None:
    """A window counts padding as tokens, ALiBi as distance, a running state takes it in; logits may be capped."""
    assert replies_in_order(every_model, mixed_prompts) == hugging_face_replies(every_model, mixed_prompts)


def test_equal_prompts_are_replied_to_once(llama: Model) -> None:
    prompts = [user_prompt(text, id=str(i)) for i, text in enumerate(["Hi", "Who?", "Hi", "Hi"])]
    rows: list[int] = []
    handle = llama.blocks[0].register_forward_hook(lambda m, args, output: rows.append(output.shape[0]))
    replies = replies_in_order(llama, prompts)
    handle.remove()
    assert max(rows) == 2
    assert replies[0] == replies[2] == replies[3]


def test_replies_end_each_at_its_own_end_token(chatty: Model, mixed_prompts: list[Prompt]) -> None:
    expected = hugging_face_replies(chatty, mixed_prompts)
    assert len({len(reply) for reply in expected}) > 1
    assert replies_in_order(chatty, mixed_prompts) == expected


def test_a_reply_is_cut_at_its_limit(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    assert max(len(reply) for reply in replies_in_order(tiny, mixed_prompts)) == NEW_TOKENS


def test_residuals_read_along_with_replies_equal_captured_ones(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    layers = (0, 2, 3)
    ids = tokenize(tiny.tokenizer, mixed_prompts)
    expected = capture(tiny, mixed_prompts, layers=layers).values
    for batch in plan_batches(ids, group_cost=REPLYING_COST):
        _, read = reply_to_batch(tiny, ids, batch, 3, layers)
        torch.testing.assert_close(read, expected[list(batch.rows)], rtol=1e-5, atol=1e-5)


def test_replies_without_wanted_layers_read_none(tiny: Model) -> None:
    ids = tokenize(tiny.tokenizer, [user_prompt("Hello")])
    assert reply_to_batch(tiny, ids, plan_batches(ids)[0], 2)[1] is None


def test_rows_that_are_done_are_skipped_by_whole_batches(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    first, *others = greedy_replies(tiny, mixed_prompts, max_new_tokens=2, max_tokens=300)
    resumed = list(greedy_replies(tiny, mixed_prompts, max_new_tokens=2, max_tokens=300, skip=first.keys()))
    assert resumed == others


def test_a_batch_with_one_row_to_do_runs_whole(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    first, *_ = greedy_replies(tiny, mixed_prompts, max_new_tokens=2)
    assert len(first) > 1
    done = list(first)[1:]
    assert next(greedy_replies(tiny, mixed_prompts, max_new_tokens=2, skip=done)) == first


def test_no_prompts_get_no_replies(tiny: Model) -> None:
    assert list(greedy_replies(tiny, [], max_new_tokens=2)) == []


def test_a_reply_that_would_leave_the_context_is_refused(tiny: Model) -> None:
    """Learned positions end where the context does."""
    room = tiny.context_length - len(tokenize(tiny.tokenizer, [user_prompt("x")])[0]) + 1
    prompt = user_prompt("x" * room, id="full")
    assert len(next(greedy_replies(tiny, [prompt], max_new_tokens=1))[0]) <= 1
    with pytest.raises(DefectionError, match="'full'"):
        next(greedy_replies(tiny, [prompt], max_new_tokens=2))


def test_a_model_without_end_tokens_writes_to_the_limit(llama: Model) -> None:
    model = copy.copy(llama)
    model.network = copy.deepcopy(llama.network)
    model.tokenizer = copy.deepcopy(llama.tokenizer)
    model.network.generation_config.eos_token_id = None
    model.tokenizer.eos_token = None
    (replies,) = greedy_replies(model, [user_prompt("Hello"), user_prompt("What?")], max_new_tokens=5)
    assert [len(reply) for reply in replies.values()] == [5, 5]


@pytest.mark.slow
def test_the_embedded_model_replies_like_hugging_face_one_at_a_time(smollm: Model, mixed_prompts: list[Prompt]) -> None:
    prompts = mixed_prompts[:2] + mixed_prompts[-3:]
    assert replies_in_order(smollm, prompts) == hugging_face_replies(smollm, prompts)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
def test_a_batch_that_runs_out_of_memory_is_halved_and_no_reply_is_lost(
    tiny: Model, mixed_prompts: list[Prompt], error: Exception
) -> None:
    prompts = [*mixed_prompts, dataclasses.replace(mixed_prompts[3], id="again")]
    ids = tokenize(tiny.tokenizer, prompts)
    whole = Batch(tuple(range(len(ids))), 0)
    expected, vectors = reply_to_batch(tiny, ids, whole, NEW_TOKENS, layers=(0, 2))
    memory = Memory(tiny, fits=max(map(len, ids)), error=error)
    found, read = reply_to_batch(tiny, ids, whole, NEW_TOKENS, layers=(0, 2))
    memory.handle.remove()
    assert memory.refused > 1
    assert found == expected
    assert vectors is not None
    assert read is not None
    assert torch.allclose(read, vectors, rtol=1e-5, atol=1e-5)


def test_one_prompt_whose_reply_does_not_fit_the_memory_is_a_refusal(tiny: Model) -> None:
    memory = Memory(tiny, fits=10, error=OUT_OF_MEMORY[0])
    with pytest.raises(DefectionError, match=r"prompt of \d+ tokens does not fit the memory of cpu"):
        replies_in_order(tiny, [user_prompt("much too long for so little memory")])
    memory.handle.remove()
