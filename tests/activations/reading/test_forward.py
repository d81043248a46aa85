"""Every family's residual streams are those of the plain Hugging Face forward, whatever goes on around them."""

import copy
import dataclasses
import json
import types
from collections.abc import Callable, Sequence

import pytest
import torch
from defection.activations.basics import memory
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.batching import Batch, plan_batches
from defection.activations.reading.capture import capture
from defection.activations.reading.forward import (
    LastPrefix,
    Reading,
    automatic_batch_tokens,
    distinct_rows,
    final_states,
    read_batch,
    token_losses,
)
from torch import Tensor

from ...zoo import STATEFUL
from ..conftest import OUT_OF_MEMORY, Memory, relative_error

LAYERS = (0, 1, 2, 3)


def hooked(model: Model, tokens: Sequence[int]) -> dict[str, Tensor]:
    """Every block's input and output for one prompt without padding: [layer, token, d_model]."""
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}
    handles = []
    for block in model.blocks:
        handles.append(
            block.register_forward_pre_hook(
                lambda m, args, kwargs: seen["before"].append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        )
        handles.append(
            block.register_forward_hook(
                lambda m, args, output: seen["after"].append(output[0] if isinstance(output, tuple) else output)
            )
        )
    with torch.inference_mode():
        model.network(
            input_ids=torch.tensor([list(tokens)]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long)
        )
    for handle in handles:
        handle.remove()
    return {site: torch.cat(streams) for site, streams in seen.items()}


def test_every_family_is_read_as_hugging_face_computes_it(every_model: Model, mixed_prompts: list[Prompt]) -> None:
    """PITFALLS 1, 2, 7: padded, batched, with shared prefixes, longer than a sliding window, and compared alone."""
    found = capture(every_model, mixed_prompts, position="all").values
    ids = tokenize(every_model.tokenizer, mixed_prompts)
    alone = torch.cat([hooked(every_model, row)["after"].transpose(0, 1) for row in ids])
    assert relative_error(found, alone) <= 1e-5


def test_every_family_reads_last_tokens_the_same_with_and_without_shared_prefixes(
    every_model: Model, family: str, mixed_prompts: list[Prompt]
) -> None:
    ids = tokenize(every_model.tokenizer, mixed_prompts)
    assert any(batch.prefix_length > 24 for batch in plan_batches(ids))
    assert every_model.shares_prefixes == (family not in STATEFUL)
    shared = capture(every_model, mixed_prompts).values
    assert relative_error(shared, capture(every_model, mixed_prompts, share_prefixes=False).values) <= 1e-5
    assert relative_error(shared, torch.stack([hooked(every_model, row)["after"][:, -1] for row in ids])) <= 1e-5


def test_every_family_is_read_before_its_blocks(every_model: Model, mixed_prompts: list[Prompt]) -> None:
    found = capture(every_model, mixed_prompts, site="before").values
    ids = tokenize(every_model.tokenizer, mixed_prompts)
    assert relative_error(found, torch.stack([hooked(every_model, row)["before"][:, -1] for row in ids])) <= 1e-5


def test_a_model_with_a_running_state_ignores_a_shared_prefix(
    any_model: Callable[[str], Model], mixed_prompts: list[Prompt]
) -> None:
    """Also when the caller's plan has one."""
    model = any_model("qwen3-next")
    ids = tokenize(model.tokenizer, mixed_prompts)
    wanted = [[len(row) - 1] for row in ids]
    expected = capture(model, mixed_prompts).values
    for batch in plan_batches(ids):
        found = read_batch(model, ids, batch, Reading(LAYERS), wanted)
        assert relative_error(found, expected[list(batch.rows)]) <= 1e-5


def test_hidden_states_are_what_comes_before_each_block(any_model: Callable[[str], Model]) -> None:
    """PITFALLS 7: Hugging Face's own list of them, all but its last, normed entry."""
    for family in ("llama", "qwen3", "gemma3", "gpt-neox", "olmo2"):
        model = any_model(family)
        prompt = user_prompt("Where does the river end?")
        with torch.inference_mode():
            tokens = torch.tensor(tokenize(model.tokenizer, [prompt]))
            states = model.network(tokens, output_hidden_states=True).hidden_states
        before = capture(model, [prompt], site="before").values[0]
        after = capture(model, [prompt]).values[0]
        assert relative_error(before, torch.stack([state[0, -1] for state in states[:-1]])) <= 1e-5
        assert relative_error(after[:-1], torch.stack([state[0, -1] for state in states[1:-1]])) <= 1e-5
        assert relative_error(after[-1], states[-1][0, -1]) > 0.05


def test_bf16_differs_from_fp32_by_rounding_alone(
    any_model: Callable[[str], Model], mixed_prompts: list[Prompt]
) -> None:
    for family in ("llama", "gemma3", "gpt2"):
        exact = any_model(family)
        rough = wrap(copy.deepcopy(exact.network).to(torch.bfloat16), exact.tokenizer)
        found = capture(rough, mixed_prompts, dtype="bf16")
        assert found.values.dtype == torch.bfloat16
        assert relative_error(found.values.float()[:, :2], capture(exact, mixed_prompts, layers="0:2").values) < 0.1


def test_an_adapter_beside_the_weights_reads_like_one_merged_into_them(
    llama: Model, mixed_prompts: list[Prompt]
) -> None:
    """PITFALLS 11 and 12."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(llama.network), settings)
    beside = wrap(adapted, llama.tokenizer)
    found = capture(beside, mixed_prompts).values
    assert beside.identity.fingerprint != wrap(llama.network, llama.tokenizer).identity.fingerprint
    merged = capture(wrap(adapted.merge_and_unload(), llama.tokenizer), mixed_prompts).values
    torch.testing.assert_close(found, merged, rtol=1e-3, atol=1e-3)
    assert relative_error(found, capture(llama, mixed_prompts).values) > 0.1


@pytest.mark.parametrize("position", ["all", "5", "mean:0:40", "-3", "mean:all", "10:300"])
@pytest.mark.parametrize("site", ["before", "middle", "after"])
def test_tokens_inside_a_shared_prefix_are_read_too(
    any_model: Callable[[str], Model], mixed_prompts: list[Prompt], position: str, site: str
) -> None:
    model = any_model("gemma3")
    prompts = [p for p in mixed_prompts if p.id.startswith("shared")] * 2
    prompts = [dataclasses.replace(prompt, id=str(i)) for i, prompt in enumerate(prompts)]
    options = {"position": position, "site": site, "layers": (1, 3)}
    together = capture(model, prompts, **options, max_tokens=70)
    alone = torch.cat([capture(model, [prompt], **options).values for prompt in prompts])
    assert relative_error(together.values, alone) <= 1e-5


def test_learned_positions_are_right_where_no_attention_runs(gpt2: Model, mixed_prompts: list[Prompt]) -> None:
    """Before block 0 a shared prefix leaves no keys behind, by which later tokens could be numbered."""
    options = {"site": "before", "layers": [0]}
    found = capture(gpt2, mixed_prompts, **options).values
    assert relative_error(found, capture(gpt2, mixed_prompts, share_prefixes=False, **options).values) <= 1e-5
    assert relative_error(found, capture(gpt2, mixed_prompts, site="before").values[:, :1]) <= 1e-5


def test_rows_of_equal_tokens_are_computed_once(llama: Model) -> None:
    prompts = [user_prompt(text, id=str(i)) for i, text in enumerate(["same"] * 50 + ["other", "same"])]
    tokens_run: list[tuple[int, ...]] = []
    handle = llama.blocks[0].register_forward_hook(lambda m, args, output: tokens_run.append(output.shape))
    found = capture(llama, prompts, position="mean:all")
    handle.remove()
    assert sum(shape[0] for shape in tokens_run) == 2
    assert torch.equal(found.values[0], found.values[51])
    assert relative_error(found.values[50:51], capture(llama, [prompts[50]], position="mean:all").values) <= 1e-5


def test_a_prefix_is_computed_once_for_all_the_batches_that_share_it(llama: Model) -> None:
    """A whole conversation asked many questions."""
    told = (Message("system", "You are careful. " * 10), Message("user", "Go on. " * 20), Message("assistant", "Yes."))
    prompts = [Prompt(str(i), (*told, Message("user", f"And number {i}?"))) for i in range(30)]
    widths: list[int] = []
    handle = llama.blocks[0].register_forward_hook(lambda m, args, output: widths.append(output.shape[1]))
    capture(llama, prompts, max_tokens=150)
    handle.remove()
    assert len(widths) > 4
    assert sum(width > 100 for width in widths) == 1


def test_tokens_after_the_last_wanted_one_are_not_computed(llama: Model) -> None:
    prompts = [user_prompt("x" * n, id=str(n)) for n in (200, 300)]
    widths: list[int] = []
    handle = llama.blocks[0].register_forward_hook(lambda m, args, output: widths.append(output.shape[:2].numel()))
    capture(llama, prompts, position="mean:0:7")
    handle.remove()
    assert widths == [7]


def test_no_block_after_the_last_layer_runs_in_a_shared_prefix_either(
    llama: Model, mixed_prompts: list[Prompt]
) -> None:
    runs: list[int] = []
    handle = llama.blocks[2].register_forward_hook(lambda m, args, output: runs.append(1))
    capture(llama, mixed_prompts, layers="0:2")
    capture(llama, mixed_prompts, layers="0:3", site="before")
    handle.remove()
    assert runs == []


def test_the_vocabulary_matrix_is_never_multiplied(tiny: Model, mixed_prompts: list[Prompt]) -> None:
    runs: list[int] = []
    handle = tiny.network.lm_head.register_forward_hook(lambda m, args, output: runs.append(1))
    capture(tiny, mixed_prompts)
    handle.remove()
    assert runs == []


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("position", ["last", "all", "mean:all"])
def test_a_batch_that_runs_out_of_memory_is_halved_and_nothing_is_lost(
    llama: Model, mixed_prompts: list[Prompt], error: Exception, position: str
) -> None:
    prompts = [*mixed_prompts, dataclasses.replace(mixed_prompts[3], id="again")]
    expected = capture(llama, prompts, position=position)
    longest = max(expected.n_tokens)
    memory = Memory(llama, fits=longest, error=error)
    found = capture(llama, prompts, position=position, max_tokens=100_000, share_prefixes=False)
    memory.handle.remove()
    assert memory.refused > 1
    assert found.offsets == expected.offsets
    assert relative_error(found.values, expected.values) <= 1e-5


def test_a_shared_prefix_survives_a_shortage_of_memory(llama: Model, mixed_prompts: list[Prompt]) -> None:
    prompts = [dataclasses.replace(mixed_prompts[6], id=str(i)) for i in range(3)] + mixed_prompts[5:8]
    expected = capture(llama, prompts)
    ids = tokenize(llama.tokenizer, prompts)
    batch = Batch(tuple(range(len(ids))), min(batch.prefix_length for batch in plan_batches(ids)))
    assert batch.prefix_length
    memory = Memory(llama, fits=batch.prefix_length, error=OUT_OF_MEMORY[0])
    last = LastPrefix()
    found = read_batch(llama, ids, batch, Reading(LAYERS), [[len(row) - 1] for row in ids], last)
    memory.handle.remove()
    assert relative_error(found, expected.values[list(batch.rows)]) <= 1e-5


@pytest.mark.parametrize("position", ["last", "all", "2:-1", "mean:all"])
@pytest.mark.parametrize("site", ["before", "after"])
def test_the_row_that_carries_a_prefix_leaves_what_the_others_need(
    any_model: Callable[[str], Model], position: str, site: str
) -> None:
    """Gemma's layers are of two kinds, of which one attends over a sliding window."""
    system = Message("system", "A rule that all of them share, and that goes on for quite a while. " * 4)
    prompts = [Prompt(str(n), (system, Message("user", "word " * n))) for n in (3, 1, 6, 6, 2)]
    for family in ("llama", "gpt2", "gemma3"):
        model = any_model(family)
        passes: list[int] = []
        handle = model.blocks[0].register_forward_hook(lambda m, args, output, passes=passes: passes.append(1))
        found = capture(model, prompts, site=site, position=position)
        handle.remove()
        alone = [capture(model, [prompt], site=site, position=position).values for prompt in prompts]
        assert relative_error(found.values, torch.cat(alone)) <= 1e-5
        assert len(passes) == 2


def test_one_prompt_that_does_not_fit_the_memory_is_a_refusal(llama: Model) -> None:
    memory = Memory(llama, fits=10, error=OUT_OF_MEMORY[0])
    with pytest.raises(DefectionError, match=r"prompt of \d+ tokens does not fit the memory of cpu"):
        capture(llama, [user_prompt("much too long for so little memory")])
    memory.handle.remove()


def test_another_failure_is_not_taken_for_a_shortage_of_memory(llama: Model) -> None:
    memory = Memory(llama, fits=0, error=RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        capture(llama, [user_prompt("a"), user_prompt("b")])
    assert memory.refused == 1
    memory.handle.remove()


def test_the_vectors_come_in_the_order_of_the_batch(llama: Model, mixed_prompts: list[Prompt]) -> None:
    ids = tokenize(llama.tokenizer, mixed_prompts)
    wanted = [[len(row) - 1, 2] for row in ids]  # not even ascending
    reading = Reading((1,), position="0:9")
    found = read_batch(llama, ids, Batch((4, 0, 2), 0), reading, wanted)
    for place, row in enumerate((4, 0, 2)):
        alone = hooked(llama, ids[row])["after"][1]
        assert relative_error(found[2 * place : 2 * place + 2, 0], alone[[-1, 2]]) <= 1e-5


def test_a_reading_is_recorded_as_json_in_one_spelling() -> None:
    reading = Reading((0, 3), "before", " mean:5: ")
    recorded = json.loads(json.dumps(dataclasses.asdict(reading)))
    assert recorded == {"layers": [0, 3], "site": "before", "position": "mean:5:"}
    assert Reading(**recorded) == reading


@pytest.mark.parametrize("change", [{"site": "normed"}, {"position": "first"}])
def test_a_reading_that_makes_no_sense_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(DefectionError, match="unknown"):
        Reading((0,), **change)


def test_predictions_are_those_of_the_whole_model_alone(every_model: Model, mixed_prompts: list[Prompt]) -> None:
    """PITFALLS 34 and 35: soft-capping, scaling, windows, prefixes, equal rows; against `transformers`' own logits."""
    ids = tokenize(every_model.tokenizer, [*mixed_prompts, mixed_prompts[3]])
    predicted = [range(1 + 5 * i % (len(row) - 1), len(row)) for i, row in enumerate(ids)]
    predicted[2] = range(4, 4)
    seen: list[int] = []
    found = token_losses(every_model, ids, predicted, max_tokens=400, advance=seen.append)
    assert sum(seen) == len(ids) - 1
    for row, tokens, losses in zip(ids, predicted, found, strict=True):
        with torch.inference_mode():
            logits = every_model.network(torch.tensor([row])).logits[0].double().log_softmax(dim=-1)
        expected = torch.tensor([-float(logits[i - 1, row[i]]) for i in tokens], dtype=torch.float64)
        torch.testing.assert_close(losses, expected, rtol=2e-4, atol=2e-4)


def test_final_states_of_rows_that_end_alike_are_each_their_own(llama: Model) -> None:
    ids = [[0, 5, 9, 7], [0, 5, 9, 8], [0, 6, 9, 7]]
    found = {}
    for rows, states in final_states(llama, ids, [range(2, 3)] * 3):
        found |= zip(rows, states, strict=True)
    assert torch.equal(found[0], found[1])  # what follows is not read, so they are the same row
    assert relative_error(found[2][None], found[0][None]) > 1e-2


def test_distinct_rows_stand_for_all() -> None:
    ids = [[1], [2, 3], [1], [1, 2]]
    firsts, place = distinct_rows(ids, (3, 0, 2, 1))
    assert [ids[firsts[i]] for i in place] == [ids[row] for row in (3, 0, 2, 1)]
    assert len(firsts) == 3


def test_the_budget_on_a_cpu_is_always_the_same(llama: Model, any_model: Callable[[str], Model]) -> None:
    """PITFALLS 15: a resumed run must meet the same batches, however full the memory is now."""
    assert automatic_batch_tokens(llama, Reading((0,))) == automatic_batch_tokens(any_model("gemma3"), Reading(LAYERS))


def test_the_budget_of_a_model_on_several_gpus_is_that_of_the_fullest(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that fill two GPUs to a half leave room on both, and are not all counted against the first."""
    about = types.SimpleNamespace(total_memory=80 * 2**20)
    monkeypatch.setattr(memory.torch.cuda, "get_device_properties", lambda device: about)

    def budget(*megabytes: int) -> int:
        weights = {torch.device("cuda", number): size * 2**20 for number, size in enumerate(megabytes)}
        monkeypatch.setitem(llama.__dict__, "weight_bytes", weights)
        return automatic_batch_tokens(llama, Reading(LAYERS, position="all"))

    assert budget(40, 40) == budget(40) > memory.CPU_BATCH_TOKENS
    assert budget(40, 79) == budget(79, 40) == budget(79) < budget(40)
