from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.load import load_model
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.batching import plan_batches
from defection.activations.reading.capture import Landing, capture, parse_layers
from defection.activations.reading.residuals import Residuals
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The worst vector's distance from the expected one, in units of its norm."""
    return ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()


def left_padded(model: Model, prompts: list[Prompt]) -> dict[str, Tensor]:
    """What Hugging Face's forward pass wants of a left-padded batch."""
    ids = tokenize(model.tokenizer, prompts)
    width = max(len(row) for row in ids)
    pad = model.tokenizer.pad_token_id
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in ids]),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
    }


@contextmanager
def altered_block(model: Model, layer: int, scale: float) -> Iterator[list[int]]:
    """Multiply a block's output; the list grows by one entry each time the block runs."""
    runs: list[int] = []

    def scaled(module: object, args: object, output: Tensor) -> Tensor:
        runs.append(layer)
        return output * scale

    handle = model.blocks[layer].register_forward_hook(scaled)
    try:
        yield runs
    finally:
        handle.remove()


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 300, 100_000])
def test_a_batch_of_mixed_lengths_equals_each_prompt_alone(
    tiny: Model, mixed_prompts: list[Prompt], share_prefixes: bool, max_tokens: int
) -> None:
    """PITFALLS 1."""
    together = capture(tiny, mixed_prompts, share_prefixes=share_prefixes, max_tokens=max_tokens)
    alone = torch.cat([capture(tiny, [prompt]).values for prompt in mixed_prompts])
    assert relative_error(together.values, alone) <= 1e-5


def test_the_prompts_of_these_tests_do_share_a_prefix(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    assert any(batch.prefix_length for batch in plan_batches(tokenize(tiny.tokenizer, mixed_prompts)))


def test_a_batch_equals_a_left_padded_hugging_face_forward(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    """PITFALLS 1: position -1 of a left-padded batch is each prompt's last token."""
    ours = capture(tiny, mixed_prompts).values
    with torch.inference_mode():
        theirs = tiny.network(**left_padded(tiny, mixed_prompts), output_hidden_states=True).hidden_states
    for layer in range(tiny.n_layers - 1):
        assert relative_error(ours[:, layer], theirs[layer + 1][:, -1]) <= 1e-5


@pytest.mark.parametrize("forgotten", ["attention_mask", "position_ids"])
def test_the_prompts_of_these_tests_tell_a_forgotten_mask_or_position(
    gpt2: Model, mixed_prompts: list[Prompt], forgotten: str
) -> None:
    """PITFALLS 2: GPT-2 is corrupted under left padding without either, so the comparison above can fail."""
    inputs = left_padded(gpt2, mixed_prompts)
    del inputs[forgotten]
    with torch.inference_mode():
        theirs = gpt2.network(**inputs, output_hidden_states=True).hidden_states[1][:, -1]
    assert relative_error(capture(gpt2, mixed_prompts).values[:, 0], theirs) > 0.1


def test_rows_come_in_the_order_of_the_prompts(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    backwards = capture(tiny, mixed_prompts[::-1])
    assert backwards.ids == tuple(prompt.id for prompt in mixed_prompts[::-1])
    assert relative_error(backwards.values.flip(0), capture(tiny, mixed_prompts).values) <= 1e-5


def test_a_layer_is_the_hidden_state_after_its_block(tiny: Model) -> None:
    """PITFALLS 7, all layers but the last."""
    prompt = user_prompt("Where does the river end?")
    ours = capture(tiny, [prompt]).values[0]
    with torch.inference_mode():
        states = tiny.network(torch.tensor(tokenize(tiny.tokenizer, [prompt])), output_hidden_states=True).hidden_states
    for layer in range(tiny.n_layers - 1):
        assert relative_error(ours[layer], states[layer + 1][0, -1]) <= 1e-5


def test_the_last_layer_is_its_blocks_output_and_not_the_normed_hidden_state(tiny: Model) -> None:
    """PITFALLS 7: `hidden_states[-1]` is after the final norm."""
    prompt = user_prompt("Where does the river end?")
    ours = capture(tiny, [prompt]).at(tiny.n_layers - 1)[0]
    seen: list[Tensor] = []
    handle = tiny.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        states = tiny.network(torch.tensor(tokenize(tiny.tokenizer, [prompt])), output_hidden_states=True).hidden_states
    handle.remove()
    assert relative_error(ours, seen[0][0, -1]) <= 1e-5
    assert relative_error(ours, states[-1][0, -1]) > 0.1


def test_some_layers_are_the_same_as_all_layers_picked_from(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    everything = capture(tiny, mixed_prompts)
    some = capture(tiny, mixed_prompts, layers="0,2")
    assert some.layers == (0, 2)
    for layer in some.layers:
        assert torch.equal(some.at(layer), everything.at(layer))


def test_no_block_after_the_last_wanted_layer_runs(tiny: Model) -> None:
    with altered_block(tiny, 2, scale=1.0) as runs:
        capture(tiny, [user_prompt("Hello")], layers=[0, 1])
    assert runs == []


def test_no_hook_stays_after_a_capture_or_a_failure(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    before = [list(block._forward_hooks) for block in tiny.blocks]  # Hugging Face leaves some of its own
    capture(tiny, [user_prompt("Hello")])
    monkeypatch.setattr(type(tiny.blocks[1]), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        capture(tiny, [user_prompt("Hello")])
    assert [list(block._forward_hooks) for block in tiny.blocks] == before


@pytest.mark.parametrize("scale", [float("inf"), float("nan")])
def test_a_residual_that_is_not_finite_names_its_layer(tiny: Model, scale: float) -> None:
    """PITFALLS 13."""
    with altered_block(tiny, 2, scale), pytest.raises(DefectionError, match=r"'first'.*layer 2 .*fp32"):
        capture(tiny, [user_prompt("Hello", id="first"), user_prompt("Bye", id="second")], layers="1,2,3")


def test_a_residual_that_is_not_finite_names_its_prompt(llama_folder: object) -> None:
    """PITFALLS 13: one token's embedding overflows, and only one prompt holds that token."""
    model = load_model(str(llama_folder), device="cpu", dtype="fp32")
    (token,) = model.tokenizer("#", add_special_tokens=False)["input_ids"]
    model.network.get_input_embeddings().weight[token] = float("inf")
    prompts = [user_prompt("harmless, long enough to come first", id="fine"), user_prompt("#", id="bad")]
    with pytest.raises(DefectionError, match=r"'bad'.*layer 0 "):
        capture(model, prompts)


def test_a_prompt_longer_than_the_context_is_named(tiny: Model) -> None:
    prompts = [user_prompt("short", id="short"), user_prompt("x" * tiny.context_length, id="long")]
    with pytest.raises(DefectionError, match=rf"'long'.*at most {tiny.context_length}"):
        capture(tiny, prompts)


def test_a_prompt_that_just_fits_the_context_is_read(tiny: Model) -> None:
    room = tiny.context_length - len(tokenize(tiny.tokenizer, [user_prompt("x")])[0]) + 1
    assert capture(tiny, [user_prompt("x" * room)]).n_tokens == (tiny.context_length,)


def test_no_prompts_give_no_rows(tiny: Model) -> None:
    assert capture(tiny, []).values.shape == (0, tiny.n_layers, tiny.d_model)


def test_bf16_residuals_come_as_fp32(llama_folder: object) -> None:
    model = load_model(str(llama_folder), device="cpu", dtype="bf16")
    assert capture(model, [user_prompt("Hello")]).values.dtype == torch.float32


@given(st.lists(st.integers(0, 29), min_size=1))
def test_listed_layers_come_ascending_without_repeats(layers: list[int]) -> None:
    expected = tuple(sorted(set(layers)))
    assert parse_layers(layers, 30) == expected
    assert parse_layers(",".join(map(str, layers)), 30) == expected


@given(st.integers(0, 29), st.integers(1, 30))
def test_a_range_of_layers_leaves_out_its_end(start: int, length: int) -> None:
    end = min(start + length, 30)
    assert parse_layers(f"{start}:{end}", 30) == tuple(range(start, end))


@pytest.mark.parametrize("text", ["all", ":", "0:", ":30", " all ", "0:15, 15:30"])
def test_every_spelling_of_all_layers(text: str) -> None:
    assert parse_layers(text, 30) == tuple(range(30))


HUGE = "9" * 40
"""A list of so many layers would fill no memory, but a range of them can be looked at."""


@pytest.mark.parametrize(
    "layers",
    ["", "x", "1.5", "30", "-1", "0:31", "3:3", "1:2:3", "1,,2", [], [30], [-1], HUGE, f"0:{HUGE}", f"-{HUGE}:3"],
)
def test_layers_that_are_not_there_are_refused(layers: str | list[int]) -> None:
    with pytest.raises(DefectionError, match="layer"):
        parse_layers(layers, 30)


@given(st.text(alphabet="0123456789:,- al", max_size=6))
def test_any_text_gives_layers_of_the_model_or_a_refusal(text: str) -> None:
    try:
        layers = parse_layers(text, 30)
    except DefectionError:
        return
    assert set(layers) <= set(range(30))


def test_selected_rows_keep_their_prompts(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    residuals = capture(tiny, mixed_prompts)
    picked = residuals.select([2, 0])
    assert picked.ids == (mixed_prompts[2].id, mixed_prompts[0].id)
    assert picked.n_tokens == (residuals.n_tokens[2], residuals.n_tokens[0])
    assert torch.equal(picked.values, residuals.values[[2, 0]])


def test_a_layer_that_was_not_captured_is_refused(tiny: Model) -> None:
    residuals = capture(tiny, [user_prompt("Hello")], layers="0,2")
    with pytest.raises(DefectionError, match=r"layer 1 was not captured.*0, 2"):
        residuals.at(1)


def test_residuals_that_do_not_fit_their_prompts_are_refused(tiny: Model) -> None:
    residuals = capture(tiny, [user_prompt("Hello")])
    with pytest.raises(DefectionError, match="do not fit"):
        Residuals(residuals.values, residuals.layers, (), (), residuals.model)


@pytest.mark.slow
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_the_embedded_model_reads_a_batch_like_each_prompt_alone(
    smollm: Model, mixed_prompts: list[Prompt], share_prefixes: bool
) -> None:
    """PITFALLS 1, on a real model, whose residuals have massive dimensions."""
    together = capture(smollm, mixed_prompts, share_prefixes=share_prefixes)
    alone = torch.cat([capture(smollm, [prompt]).values for prompt in mixed_prompts])
    assert relative_error(together.values, alone) <= 1e-5


class Gpus:
    """What PyTorch's CUDA does as far as order goes: a copy is done when somebody waits for an event behind it.

    Each device has a stream; an event is recorded on that of the current device.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.streams: dict[int, list[Callable[[], object]]] = {0: [], 1: []}
        self.pinned: set[int] = set()
        empty, gpus = torch.empty, self

        def pinnable(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            host = empty(*shape, **options)
            if pin_memory:
                gpus.pinned.add(host.data_ptr())
                host.fill_(float("nan"))
            return host

        class Event:
            def record(self) -> None:
                self.stream = gpus.streams[gpus.current]
                self.behind = list(self.stream)

            def synchronize(self) -> None:
                for each in self.behind:
                    if each in self.stream:
                        self.stream.remove(each)
                        each()

        monkeypatch.setattr(torch, "empty", pinnable)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", self.device)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    def tensor(self, values: Tensor, index: int) -> Tensor:
        """A tensor on the GPU of that number."""
        gpus = self

        class OnGpu(Tensor):
            is_cuda = property(lambda self: True)  # type: ignore[assignment]
            device = property(lambda self: torch.device("cuda", index))  # type: ignore[assignment]

            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is not Tensor.copy_:
                    return super().__torch_function__(func, types, args, kwargs or {})
                host, given = args[0], args[1].as_subclass(Tensor)
                assert (kwargs or {}).get("non_blocking")
                assert host.data_ptr() in gpus.pinned, "a copy into pageable memory may be read before it has ended"
                gpus.streams[index].append(lambda: host.copy_(given))
                return host

        return values.as_subclass(OnGpu)


@pytest.mark.parametrize("index", [0, 1])
def test_vectors_of_any_gpu_are_placed_after_they_have_arrived(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Under a launcher each process has a GPU of its own, which is not the current one."""
    gpus = Gpus(monkeypatch)
    expected = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    values = torch.zeros(6, 2, 3)
    landing = Landing(values)
    for places in ([4, 0], [1, 5], [3, 2]):
        landing.put(places, gpus.tensor(expected[places], index))
    assert torch.equal(values[[4, 0, 1, 5]], expected[[4, 0, 1, 5]])
    assert not values[[3, 2]].any()  # the last copy is still under way
    landing.settle()
    assert torch.equal(values, expected)
    assert gpus.current == 0
