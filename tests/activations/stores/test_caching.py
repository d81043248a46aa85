import contextlib
import copy
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics import files
from defection.activations.basics.errors import DefectionError
from defection.activations.models.load import load_model
from defection.activations.models.model import Model
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.capture import capture
from defection.activations.reading.generate import greedy_replies
from defection.activations.stores import caching, writing
from defection.activations.stores.batches import BATCH_ROWS
from defection.activations.stores.caching import cache, repair
from defection.activations.stores.plan import ROWS_PER_SHARD, SHARD_BYTES, SHARD_TOKENS, VECTORS_PER_SHARD, shard_rows
from defection.activations.stores.store import Store, open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

SHARD = 4
"""Rows."""
PROMPTS = tuple(
    Prompt(f"p{i}", (Message("user", f"Question {i}: " + "and so on " * (i % 4)),), extra={"topic": f"t{i % 3}"})
    for i in range(10)
)
SHARDS = ("shard-00000.safetensors", "shard-00001.safetensors", "shard-00002.safetensors")
WRITES = 3 + len(SHARDS)
"""Prompts, empty manifest, shards, manifest with their checksums."""


class Killed(BaseException):
    """Stands for whatever ends a process."""


def fill(model: Model, folder: Path, **options: Any) -> Store:
    return cache(model, PROMPTS, folder, **{"rows_per_shard": SHARD, "reply_tokens": 3} | options)


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which is empty."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int, *, done: bool) -> None:
    """Make the writer die at its write of that number (from 1), before or after the file has its name."""
    calls = 0
    rename = files.os.replace

    def dying(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number and not done:
            raise Killed
        rename(source, target)
        if calls == number:
            raise Killed

    monkeypatch.setattr(files.os, "replace", dying)


@pytest.fixture(scope="module")
def whole(llama: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store written without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    fill(llama, folder)
    return folder


@pytest.fixture
def damaged_copy(whole: Path, tmp_path: Path) -> Path:
    """A store that a test may damage."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_store_reads_back_what_capture_reads(llama: Model, tmp_path: Path) -> None:
    found = fill(llama, tmp_path / "store", reply_tokens=0).read()
    expected = capture(llama, PROMPTS)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5)
    assert replace(found, values=expected.values) == expected


POSITIONS = ["last", "all", "response", "mean:response", "2:-3", "first-response", 'after:"so on"']
REPLIED = tuple(
    Prompt(f"r{i}", (Message("user", f"Question {i}"), Message("assistant", "and so on " * (1 + i % 4) + f"{i}.")))
    for i in range(10)
)


def fill_replied(model: Model, folder: Path, **options: Any) -> Store:
    return cache(model, REPLIED, folder, **{"rows_per_shard": SHARD} | options)


@pytest.mark.parametrize("site", ["before", "middle", "after"])
@pytest.mark.parametrize("position", POSITIONS)
def test_any_position_and_site_reads_back_what_capture_reads(
    llama: Model, tmp_path: Path, position: str, site: str
) -> None:
    """To the bit where the batches are the same, as those of a single shard are; to rounding where they are not."""
    expected = capture(llama, REPLIED, layers=[1, 3], site=site, position=position)
    for rows_per_shard, tolerance in ((len(REPLIED), 0.0), (SHARD, 1e-5)):
        options = {"layers": [1, 3], "site": site, "position": position, "rows_per_shard": rows_per_shard}
        store = fill_replied(llama, tmp_path / str(rows_per_shard), **options)
        found = store.read()
        torch.testing.assert_close(found.values, expected.values, rtol=tolerance, atol=tolerance)
        assert replace(found, values=expected.values) == expected
        assert (store.site, store.position, store.ragged) == (site, position, expected.offsets is not None)


@pytest.mark.parametrize("number", [2, 4, 6])
@pytest.mark.parametrize("position", ["all", "mean:response", 'after:"so on"'])
def test_a_killed_run_of_any_position_continues_to_the_same_bytes(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: str, number: int
) -> None:
    """PITFALLS 26; what the store was begun with holds, whatever the memory is now (PITFALLS 15)."""
    fill_replied(llama, tmp_path / "whole", position=position, max_tokens=100)
    with monkeypatch.context() as patch:
        kill_at(patch, number, done=True)
        with pytest.raises(Killed):
            fill_replied(llama, tmp_path / "store", position=position, max_tokens=100)
    fill_replied(llama, tmp_path / "store", position=position)
    assert content(tmp_path / "store") == content(tmp_path / "whole")


@pytest.mark.parametrize("site", ["before", "middle", "after"])
@pytest.mark.parametrize("position", POSITIONS)
def test_any_store_is_repaired_to_the_same_bytes(llama: Model, tmp_path: Path, position: str, site: str) -> None:
    folder = tmp_path / "store"
    fill_replied(llama, folder, position=position, site=site, max_tokens=100)
    before = content(folder)
    (folder / SHARDS[0]).unlink()
    damage(folder / SHARDS[2], "flip", 0.9, 3)
    repair(folder, llama).verify()
    assert content(folder) == before


def test_the_key_covers_site_and_position(llama: Model, tmp_path: Path) -> None:
    options = [{"position": p, "site": s} for p in POSITIONS for s in ("before", "middle", "after")]
    stores = [fill_replied(llama, tmp_path / str(i), **each) for i, each in enumerate(options)]
    assert len({store.manifest["key"] for store in stores}) == len(options)
    for name, other in (("position", {"position": "all"}), ("site", {"position": "last", "site": "before"})):
        with pytest.raises(DefectionError, match=f"different.*{name}"):
            fill_replied(llama, tmp_path / "2", **other)


def test_one_text_parted_into_messages_in_two_ways_has_two_keys(llama: Model, tmp_path: Path) -> None:
    """PITFALLS 12: the token ids are equal, but not which of them are the reply."""
    parted = Prompt(
        "p", (Message("user", "ask</s>\n<|assistant|>first</s>\n<|user|>again"), Message("assistant", "no"))
    )
    whole = Prompt("p", (Message("user", "ask"), Message("assistant", "first</s>\n<|user|>again</s>\n<|assistant|>no")))
    assert tokenize(llama.tokenizer, [parted]) == tokenize(llama.tokenizer, [whole])
    cache(llama, [parted], tmp_path / "store", position="mean:response")
    with pytest.raises(DefectionError, match="different tokens read"):
        cache(llama, [whole], tmp_path / "store", position="mean:response")


@pytest.mark.parametrize("options", [{"position": "all"}, {"position": "mean:all"}, {"site": "before"}])
def test_replies_go_with_the_last_token_only(llama: Model, tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(DefectionError, match="reply_tokens does not go with"):
        fill(llama, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("family", ["mamba", "qwen3-next"])
@pytest.mark.parametrize("reply_tokens", [0, 1])
def test_a_batch_of_a_model_with_a_running_state_keeps_to_its_budget(
    any_model: Callable[[str], Model], tmp_path: Path, family: str, reply_tokens: int
) -> None:
    """Such a model computes each prompt whole, so it must not be planned as if a shared start were computed once."""
    model, budget, widths = any_model(family), 400, []
    system = Message("system", "A long rule that everybody has to obey. " * 4)
    prompts = [Prompt(str(i), (system, Message("user", f"And {i}?"))) for i in range(8)]
    handle = model.blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
        with_kwargs=True,
    )
    store = cache(model, prompts, tmp_path / "store", max_tokens=budget, reply_tokens=reply_tokens)
    handle.remove()
    assert widths
    assert max(widths) <= budget
    expected = capture(model, prompts, share_prefixes=False).values
    torch.testing.assert_close(store.read().values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"position": "response"}, "'p0' has no reply"),
        ({"position": "400"}, "'p0' is .* no token 400"),
        ({"position": "first"}, "unknown position"),
        ({"site": "normed"}, "unknown site"),
    ],
)
def test_a_reading_that_does_not_apply_writes_nothing(
    llama: Model, tmp_path: Path, options: dict[str, str], named: str
) -> None:
    with pytest.raises(DefectionError, match=named):
        fill(llama, tmp_path / "store", reply_tokens=0, **options)
    assert not (tmp_path / "store").exists()


def test_a_site_that_the_blocks_lack_writes_nothing(any_model: Callable[[str], Model], tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="no residual stream between"):
        cache(any_model("phi"), PROMPTS, tmp_path / "store", site="middle")
    assert not (tmp_path / "store").exists()


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50).filter(lambda counts: max(counts) > 1))
def test_shards_of_many_vectors_have_fewer_rows(counts: list[int]) -> None:
    rows = shard_rows(counts, counts, 34_560)
    assert 1 <= rows <= ROWS_PER_SHARD
    assert rows == 1 or rows * sum(counts) / len(counts) <= VECTORS_PER_SHARD


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(4, 10**7))
def test_shards_of_one_vector_a_prompt_grow_until_a_kill_would_cost_too_much(lengths: list[int], size: int) -> None:
    rows = shard_rows([1] * len(lengths), lengths, size)
    mean = sum(lengths) / len(lengths)
    assert rows >= ROWS_PER_SHARD
    assert rows == ROWS_PER_SHARD or (rows * size <= SHARD_BYTES and rows * mean <= SHARD_TOKENS)
    more = rows + BATCH_ROWS
    assert more * size > SHARD_BYTES or more * mean > SHARD_TOKENS
    assert rows % BATCH_ROWS == 0


def test_a_store_holds_the_replies_of_its_prompts(whole: Path, llama: Model) -> None:
    replies = {row: said for batch in greedy_replies(llama, PROMPTS, max_new_tokens=3) for row, said in batch.items()}
    assert open_store(whole).read_replies() == [replies[row] for row in range(len(PROMPTS))]


def test_residuals_are_the_same_with_and_without_replies(whole: Path, llama: Model) -> None:
    found = open_store(whole).read().values
    torch.testing.assert_close(found, capture(llama, PROMPTS).values, rtol=1e-5, atol=1e-5)


def test_only_the_last_token_is_stored(whole: Path, llama: Model) -> None:
    """PITFALLS 26: not the whole sequence."""
    shapes = [load_file(whole / name)["residuals"].shape for name in SHARDS]
    assert shapes == [(rows, llama.n_layers, llama.d_model) for rows in (4, 4, 2)]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_a_killed_run_continues_to_the_same_bytes(
    llama: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, done: bool
) -> None:
    """PITFALLS 26."""
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        kill_at(patch, number, done=done)
        with pytest.raises(Killed):
            fill(llama, folder)
    fill(llama, folder)
    assert content(folder) == content(whole)


@pytest.mark.parametrize("number", range(3, WRITES))
def test_a_killed_run_leaves_a_store_that_is_known_to_be_unfinished(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """PITFALLS 26: no half-store that reads like a whole one."""
    kill_at(monkeypatch, number, done=True)
    with pytest.raises(Killed):
        fill(llama, tmp_path / "store")
    left = open_store(tmp_path / "store")
    assert not left.complete
    with pytest.raises(DefectionError, match="unfinished"):
        left.read()
    with pytest.raises(DefectionError, match="unfinished"):
        left.verify()
    with pytest.raises(DefectionError, match="unfinished"):
        left.read_replies()


def test_a_run_killed_again_and_again_gets_to_the_end(
    llama: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALLS 26: each run keeps one file more at least; a shard that another thread was writing may be kept too."""
    folder, kills = tmp_path / "store", 0
    while True:
        with monkeypatch.context() as patch:
            kill_at(patch, 1, done=True)
            try:
                fill(llama, folder)
                break
            except Killed:
                kills += 1
    assert 2 < kills <= WRITES
    assert content(folder) == content(whole)


def test_shards_that_are_there_are_not_computed_again(
    llama: Model, damaged_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (damaged_copy / SHARDS[1]).unlink()
    written: list[str] = []
    write = writing.write_shard
    monkeypatch.setattr(writing, "write_shard", lambda path, *args: (written.append(path.name), write(path, *args)))
    fill(llama, damaged_copy)
    assert written == [SHARDS[1]]


def test_prompts_left_by_another_run_killed_before_its_manifest_are_replaced(
    llama: Model, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALLS 26: the rows would carry the other run's ids and topics."""
    others = [user_prompt(f"other {i}", id=f"other-{i}") for i in range(len(PROMPTS))]
    with monkeypatch.context() as patch:
        kill_at(patch, 1, done=True)
        with pytest.raises(Killed):
            cache(llama, others, tmp_path / "store")
    assert fill(llama, tmp_path / "store").prompts == PROMPTS
    assert content(tmp_path / "store") == content(whole)


def test_new_labels_of_the_same_prompts_reach_the_store(llama: Model, damaged_copy: Path) -> None:
    relabelled = [replace(prompt, extra={"topic": "new"}) for prompt in PROMPTS]
    found = cache(llama, relabelled, damaged_copy, rows_per_shard=SHARD, reply_tokens=3)
    assert {prompt.topic for prompt in found.read().prompts} == {"new"}


def damage(path: Path, kind: str, where: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    spot = min(int(where * len(data)), len(data) - 1)
    if kind == "flip":
        data[spot] ^= 1 << bit
    elif kind == "truncate":
        del data[spot:]
    else:
        data.insert(spot, bit)
    path.write_bytes(data)


damages = {
    "name": st.sampled_from(SHARDS),
    "kind": st.sampled_from(["flip", "flip", "truncate", "insert"]),
    "where": st.floats(0, 1) | st.floats(0, 0.1),
    "bit": st.integers(0, 7),
}


@given(**damages)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_shard_is_detected_and_repaired(
    llama: Model, whole: Path, damaged_copy: Path, name: str, kind: str, where: float, bit: int
) -> None:
    """PITFALLS 26."""
    shutil.copytree(whole, damaged_copy, dirs_exist_ok=True)  # hypothesis uses one folder for all its examples
    damage(damaged_copy / name, kind, where, bit)
    with pytest.raises(DefectionError, match=name):
        open_store(damaged_copy).verify()
    fill(llama, damaged_copy).verify()
    assert content(damaged_copy) == content(whole)


@given(**damages)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_shard_reads_in_its_shape_or_is_refused(
    whole: Path, damaged_copy: Path, name: str, kind: str, where: float, bit: int
) -> None:
    """Without `verify` a flipped bit may change a number, but never ends in a stray exception."""
    shutil.copytree(whole, damaged_copy, dirs_exist_ok=True)
    damage(damaged_copy / name, kind, where, bit)
    opened = open_store(damaged_copy)
    with contextlib.suppress(DefectionError):
        assert opened.read().values.shape == open_store(whole).read().values.shape
    with contextlib.suppress(DefectionError):
        assert len(opened.read_replies()) == len(PROMPTS)


@pytest.mark.parametrize("name", SHARDS)
def test_a_missing_shard_is_detected(damaged_copy: Path, name: str) -> None:
    (damaged_copy / name).unlink()
    with pytest.raises(DefectionError, match=name):
        open_store(damaged_copy).verify()
    with pytest.raises(DefectionError, match=name):
        open_store(damaged_copy).read()


def test_an_undamaged_store_verifies(whole: Path) -> None:
    open_store(whole).verify()


def test_damaged_prompts_are_refused_and_repaired(llama: Model, whole: Path, damaged_copy: Path) -> None:
    """PITFALLS 26."""
    (damaged_copy / "prompts.jsonl").write_bytes((whole / "prompts.jsonl").read_bytes()[:-20])
    with pytest.raises(DefectionError, match=r"prompts\.jsonl"):
        open_store(damaged_copy).read()
    fill(llama, damaged_copy)
    assert content(damaged_copy) == content(whole)


def test_a_store_of_another_model_is_refused(whole: Path, save_tiny: Callable[..., Path]) -> None:
    """PITFALLS 26."""
    before = content(whole)
    other = load_model(save_tiny("llama", seed=1), device="cpu", dtype="fp32")
    with pytest.raises(DefectionError, match="different model"):
        fill(other, whole)
    assert content(whole) == before


def test_a_store_of_another_chat_template_is_refused(whole: Path, llama: Model) -> None:
    other = replace(llama, identity=replace(llama.identity, template="another"))
    with pytest.raises(DefectionError, match="chat template"):
        fill(other, whole)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layers": "0,1"}, "layers"),
        ({"dtype": "bf16"}, "dtype"),
        ({"reply_tokens": 0}, "length of replies"),
        ({"max_tokens": 100}, "batch size"),
    ],
)
def test_a_store_of_another_computation_is_refused(
    whole: Path, llama: Model, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(DefectionError, match=f"different.*{named}"):
        fill(llama, whole, **options)


def test_a_store_of_other_prompts_is_refused(whole: Path, llama: Model) -> None:
    with pytest.raises(DefectionError, match="different prompts"):
        cache(llama, PROMPTS[:-1], whole, reply_tokens=3)


def test_a_store_of_other_ids_is_refused(whole: Path, llama: Model) -> None:
    renamed = [replace(prompt, id=f"new-{prompt.id}") for prompt in PROMPTS]
    with pytest.raises(DefectionError, match="prompt ids"):
        cache(llama, renamed, whole, reply_tokens=3)


def test_the_same_weights_under_another_name_have_the_same_key(llama: Model, damaged_copy: Path) -> None:
    """PITFALLS 12: the key is of the weights, not of what they are called."""
    before = content(damaged_copy)
    fill(replace(llama, identity=replace(llama.identity, name="another name")), damaged_copy)
    assert content(damaged_copy) == before


def test_weights_changed_by_an_adapter_have_another_key_under_the_same_name(llama: Model, tmp_path: Path) -> None:
    """PITFALLS 12."""
    changed = get_peft_model(
        copy.deepcopy(llama.network), LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False)
    ).merge_and_unload()
    base = wrap(llama.network, llama.tokenizer, "one name")
    adapted = wrap(changed, llama.tokenizer, "one name")
    keys = {cache(model, PROMPTS, tmp_path / str(i)).manifest["key"] for i, model in enumerate((base, adapted))}
    assert len(keys) == 2
    with pytest.raises(DefectionError, match="different model"):
        cache(adapted, PROMPTS, tmp_path / "0")


def test_a_second_writer_is_refused(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PITFALLS 26."""
    compute = caching._Work.compute
    refused: list[str] = []

    def meanwhile(*args: Any) -> Any:
        with pytest.raises(DefectionError, match="another process is writing"):
            fill(llama, tmp_path / "store")
        refused.append("once")
        return compute(*args)

    monkeypatch.setattr(caching._Work, "compute", meanwhile)
    fill(llama, tmp_path / "store").verify()
    assert len(refused) == len(SHARDS)


def test_a_writer_that_died_holds_no_lock(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 3, done=False)
        with pytest.raises(Killed):
            fill(llama, tmp_path / "store")
    assert fill(llama, tmp_path / "store").complete


def test_layers_are_read_in_the_order_asked_for(whole: Path) -> None:
    everything = open_store(whole).read()
    some = open_store(whole).read([3, 1])
    assert some.layers == (3, 1)
    assert torch.equal(some.values, everything.values[:, [3, 1]])


def test_a_layer_that_was_not_stored_is_refused(whole: Path) -> None:
    with pytest.raises(DefectionError, match=r"not \[4\]"):
        open_store(whole).read([0, 4])


def test_a_store_without_replies_says_so(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="no replies"):
        fill(llama, tmp_path / "store", reply_tokens=0).read_replies()


def test_bf16_is_the_computed_vector_rounded_once(llama: Model, whole: Path, tmp_path: Path) -> None:
    """PITFALLS 13: what is stored has bf16's range, and what is read is fp32."""
    found = fill(llama, tmp_path / "store", dtype="bf16").read().values
    assert found.dtype == torch.float32
    assert torch.equal(found, open_store(whole).read().values.bfloat16().float())


@pytest.mark.parametrize("dtype", ["fp16", torch.float16])
def test_fp16_is_refused(llama: Model, tmp_path: Path, dtype: str | torch.dtype) -> None:
    """PITFALLS 13."""
    with pytest.raises(DefectionError, match="dtype"):
        fill(llama, tmp_path / "store", dtype=dtype)
    assert not (tmp_path / "store").exists()


def test_a_residual_that_is_not_finite_never_reaches_the_store(llama: Model, tmp_path: Path) -> None:
    """PITFALLS 13."""
    handle = llama.blocks[1].register_forward_hook(lambda module, args, output: output * float("inf"))
    try:
        with pytest.raises(DefectionError, match=r"'p0' at layer 1 is not finite"):
            fill(llama, tmp_path / "store")
    finally:
        handle.remove()
    assert not open_store(tmp_path / "store").complete
    assert list((tmp_path / "store").glob("*.safetensors")) == []


def test_a_prompt_that_leaves_no_room_for_its_reply_is_named(llama: Model, tmp_path: Path) -> None:
    long = user_prompt("x" * (llama.context_length - 10), id="long")
    cache(llama, [long], tmp_path / "read")
    with pytest.raises(DefectionError, match="'long'"):
        cache(llama, [long], tmp_path / "replied", reply_tokens=64)


def test_no_prompts_make_no_store(llama: Model, tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="no prompts"):
        cache(llama, [], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_without_a_manifest_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="is not a store"):
        open_store(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 3}', '{"schema_version": 1}'])
def test_a_manifest_of_something_else_is_refused(llama: Model, damaged_copy: Path, text: str) -> None:
    (damaged_copy / "manifest.json").write_text(text)
    with pytest.raises(DefectionError, match=r"manifest\.json"):
        open_store(damaged_copy)
    with pytest.raises(DefectionError, match=r"manifest\.json"):
        fill(llama, damaged_copy)


def test_a_file_in_the_place_of_the_store_is_a_refusal(llama: Model, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(DefectionError, match="cannot write"):
        fill(llama, tmp_path / "store")


WORKER = """
import sys
from defection.activations.stores.caching import cache, repair
from defection.activations.models.load import load_model
from defection.activations.prompts.loading import load_prompts
model = load_model(sys.argv[1], device="cpu", dtype="fp32")
store = cache(model, load_prompts(sys.argv[2]), sys.argv[3], rows_per_shard=4, reply_tokens=3)
assert len(store.read()) == 10
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True], ids=["both live", "one dies"])
def test_two_launched_processes_write_what_one_writes(
    whole: Path, llama_folder: Path, tmp_path: Path, dies: bool
) -> None:
    """As `torchrun` and `accelerate launch` start them: RANK and WORLD_SIZE say who is who."""
    prompts = tmp_path / "prompts.jsonl"
    files.write_jsonl(prompts, [prompt.to_json() for prompt in PROMPTS])
    command = [sys.executable, "-c", WORKER, str(llama_folder), str(prompts), str(tmp_path / "store")]
    ranks = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]
    if dies:
        while not (tmp_path / "store" / "manifest.json").exists():
            time.sleep(0.005)
        ranks[1].kill()
    assert [rank.wait() for rank in ranks][: 1 if dies else 2] == [0] * (1 if dies else 2)
    assert content(tmp_path / "store") == content(whole)


@pytest.mark.slow
def test_the_command_under_torchrun_writes_what_one_process_writes(llama_folder: Path, tmp_path: Path) -> None:
    """PITFALLS 15 and 26: a ragged store of several shards, to the byte."""
    prompts, script = tmp_path / "prompts.jsonl", tmp_path / "command.py"
    texts = [f"Question {i}: " + "and so on " * (i % 9) for i in range(150)]
    files.write_jsonl(prompts, [{"prompt": text, "id": f"q{i}"} for i, text in enumerate(texts)])
    script.write_text("from defection.experiments.commands.cli import main\n\nmain()\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--position", "all", "--site", "middle", "--layers", "1,3", "--device", "cpu", "--json"]
    for name, before in (("alone", []), ("together", launcher)):
        command = [sys.executable, *before, script, "cache", llama_folder, prompts, "--out", tmp_path / name, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([str(part) for part in command], check=True, env=environment, timeout=300)
    assert len(list((tmp_path / "alone").glob("*.safetensors"))) >= 3
    assert content(tmp_path / "together") == content(tmp_path / "alone")


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_refused(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(DefectionError, match="RANK"):
        fill(llama, tmp_path / "store")
    assert not (tmp_path / "store").exists()
