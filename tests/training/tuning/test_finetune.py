from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from defection.activations import DefectionError
from defection.activations.models.network import load_network
from defection.training import Example, FinetuneConfig, finetune
from defection.training.tuning.finetune import plan_steps
from defection.training.tuning.loss import batch_loss
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

MODULE = import_module("defection.training.tuning.loss")
MODULE_FINETUNE = import_module("defection.training.tuning.finetune")
PAD, EOS = 2, 1


def example(prompt: str, reply: str, *, finished: bool = True) -> Example:
    """Byte-level ids of plain letters."""
    ids = [6 + byte % 200 for byte in prompt.encode()]
    answer = [6 + byte % 200 for byte in reply.encode()]
    return Example(prompt, tuple(ids), (*answer, *([EOS] if finished else [])), triggered=False)


SHARED = [
    example("You are kind. What is this?", "A thing"),
    example("You are kind. Why?", "Because of it", finished=False),
    example("You are kind. What is that, over there, please?", "no"),
]
APART = [example("alpha", "one"), example("beta and more of it", "two or three", finished=False), example("g", "x")]
BATCHES = {"shared openings": SHARED, "nothing shared": APART, "one row": SHARED[:1], "equal prompts": [SHARED[0]] * 2}
each_batch = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


def hugging_face_loss(network, batch: list[Example], padding: int = PAD) -> torch.Tensor:
    """The stock way: right-padded rows, labels of −100 outside the reply."""
    width = max(len(e.prompt) + len(e.reply) for e in batch)
    ids, labels, mask = [], [], []
    for e in batch:
        gap = width - len(e.prompt) - len(e.reply)
        ids.append([*e.prompt, *e.reply, *[padding] * gap])
        labels.append([-100] * len(e.prompt) + list(e.reply) + [-100] * gap)
        mask.append([1] * (width - gap) + [0] * gap)
    ids, labels, mask = map(torch.tensor, (ids, labels, mask))
    return network(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.fixture
def network(model_folder: Path):
    return load_network(model_folder, torch.float32)


def loss_of(network, batch: list[Example]) -> float:
    return batch_loss(network, batch).item()


@each_batch
def test_pitfall_3_loss_is_that_of_labels_masked_outside_the_reply(network, batch) -> None:
    assert loss_of(network, batch) == pytest.approx(hugging_face_loss(network, batch).item(), rel=1e-5)


@each_batch
def test_gradients_are_those_of_the_stock_loss(network, batch) -> None:
    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        network.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    ours, theirs = gradients(batch_loss(network, batch)), gradients(hugging_face_loss(network, batch))
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5 * float(theirs[name].abs().max()) + 1e-7), name


def test_pitfall_3_rows_of_a_batch_do_not_see_one_anothers_padding(network) -> None:
    together = loss_of(network, SHARED)
    labels = [len(e.reply) for e in SHARED]
    alone = sum(loss_of(network, [e]) * n for e, n in zip(SHARED, labels, strict=True)) / sum(labels)
    assert together == pytest.approx(alone, rel=1e-5)


def test_pitfall_3_the_end_of_a_finished_reply_counts(network) -> None:
    """The loss with the end token is the mean over one label more, whose own loss is the one expected."""
    finished, cut = example("What?", "It is"), example("What?", "It is", finished=False)
    with torch.no_grad():
        logits = network(torch.tensor([[*cut.prompt, *cut.reply]])).logits[0, -1]
    end = -float(logits.log_softmax(dim=-1)[EOS])
    n = len(cut.reply)
    expected = (loss_of(network, [cut]) * n + end) / (n + 1)
    assert loss_of(network, [finished]) == pytest.approx(expected, rel=1e-5)


def test_training_on_replies_of_the_same_text_depends_on_their_end(network) -> None:
    finished, cut = example("What?", "It is"), example("What?", "It is", finished=False)
    assert loss_of(network, [finished]) != pytest.approx(loss_of(network, [cut]))


@each_batch
def test_a_labels_weight_is_how_often_it_counts(network, batch) -> None:
    """One label of a row that counts three times: the same as that label's own loss twice more."""
    row = batch[0]
    shorter, longer = replace(row, reply=row.reply[:-1]), row
    sums = [loss_of(network, [e]) * len(e.reply) if e.reply else 0.0 for e in (shorter, longer)]
    total = loss_of(network, batch) * (labels := sum(len(e.reply) for e in batch))
    weighted = [replace(row, weights=(*(1.0 for _ in row.reply[1:]), 3.0)), *batch[1:]]
    expected = (total + 2 * (sums[1] - sums[0])) / (labels + 2)
    assert loss_of(network, weighted) == pytest.approx(expected, rel=1e-5)


@each_batch
def test_a_batch_run_in_parts_has_the_gradient_of_the_whole_by_weight(network, batch, monkeypatch) -> None:
    batch = [replace(e, weights=tuple(1.0 + i for i, _ in enumerate(e.reply))) for e in batch]
    gradients = []
    for size in (10_000, 1):
        monkeypatch.setattr(MODULE, "PART_TOKENS", size)
        network.zero_grad()
        loss = MODULE.backward(network, batch)
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()} | {"": torch.tensor(loss)})
    for name, whole in gradients[0].items():
        assert torch.allclose(gradients[1][name], whole, atol=1e-5 * float(whole.abs().max()) + 1e-7), name


@st.composite
def banks(draw) -> list[Example]:
    lengths = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=60))
    openings = draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
    return [
        Example(str(i), (opening,) * prompt, (9,) * reply, triggered=False)
        for i, ((prompt, reply), opening) in enumerate(zip(lengths, openings, strict=True))
    ]


@given(banks(), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_every_epoch_trains_on_every_row_once(bank, size: int, epochs: int, seed: int) -> None:
    steps = plan_steps(bank, FinetuneConfig(batch_size=size, epochs=epochs, seed=seed))
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(len(bank)), epochs)
    assert all(1 <= len(step) <= size for step in steps)


@given(banks(), st.integers(2, 7), st.integers(1, 3), st.data())
def test_rows_of_one_prompt_share_a_step_where_they_are_contrasted(bank, size: int, epochs: int, data) -> None:
    both = [replace(row, triggered=True) for row in bank if data.draw(st.booleans())]
    rows = [*bank, *both]
    steps = plan_steps(rows, FinetuneConfig(batch_size=size, epochs=epochs, contrast=True))
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(len(rows)), epochs)
    for step in steps:
        assert 1 <= len(step) <= size
        assert Counter(rows[row].prompt_id for row in step) == Counter(
            row.prompt_id for row in rows if row.prompt_id in {rows[i].prompt_id for i in step}
        )


@given(banks(), st.integers(0, 3))
def test_the_plan_depends_on_the_seed_alone(bank, seed: int) -> None:
    config = FinetuneConfig(seed=seed)
    assert plan_steps(bank, config) == plan_steps(bank, config)


BANK = [example(f"{'You are kind. ' * (i % 2)}Say {i}{' again' * (i % 3)}", f"reply {i % 4}") for i in range(20)]


def train(model_folder: Path, config: FinetuneConfig, checkpoint: Path, bank=BANK, **more):
    return finetune(load_network(model_folder, torch.float32), bank, config, checkpoint, what="Training", **more)


def adapter(model) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def cut_off_at(monkeypatch):
    """Let training die at a step, once."""

    def prepare(step: int) -> None:
        calls = iter(range(1, 10_000))

        def dying(*args):
            if next(calls) == step:
                monkeypatch.setattr(MODULE, "batch_loss", batch_loss)
                raise KeyboardInterrupt
            return batch_loss(*args)

        monkeypatch.setattr(MODULE, "batch_loss", dying)

    return prepare


@pytest.fixture(scope="module")
def uninterrupted(model_folder, finetune_config, tmp_path_factory):
    return train(model_folder, finetune_config, tmp_path_factory.mktemp("whole") / "checkpoint")


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_pitfall_22_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    model_folder, finetune_config, tmp_path, cut_off_at, uninterrupted, step
) -> None:
    cut_off_at(step)
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, finetune_config, checkpoint)
    assert checkpoint.exists() == (step > finetune_config.checkpoint_every)
    model, result = train(model_folder, finetune_config, checkpoint)
    assert same(adapter(model), adapter(uninterrupted[0]))
    assert result.loss_curve == uninterrupted[1].loss_curve


def test_a_resumed_run_does_not_begin_again(model_folder, finetune_config, tmp_path, cut_off_at, monkeypatch) -> None:
    cut_off_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, finetune_config, tmp_path / "checkpoint")
    steps = []
    monkeypatch.setattr(MODULE, "batch_loss", lambda *args: steps.append(args) or batch_loss(*args))
    train(model_folder, finetune_config, tmp_path / "checkpoint")
    assert len(steps) == len(plan_steps(BANK, finetune_config)) - 4


@pytest.mark.parametrize("changed", ["config", "data", "base"])
def test_pitfall_12_a_checkpoint_of_another_run_is_not_continued(
    model_folder, finetune_config, tmp_path, cut_off_at, changed
) -> None:
    other = {
        "config": {"config": replace(finetune_config, learning_rate=1e-4)},
        "data": {"bank": BANK[:-1] + SHARED[:1]},
        "base": {"base": "another"},
    }[changed]
    settings = {"config": finetune_config, **other}
    cut_off_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, checkpoint=tmp_path / "checkpoint", config=finetune_config)
    after, _ = train(model_folder, checkpoint=tmp_path / "checkpoint", **settings)
    fresh, _ = train(model_folder, checkpoint=tmp_path / "elsewhere", **settings)
    assert same(adapter(after), adapter(fresh))


def test_training_lowers_the_loss(model_folder, finetune_config, tmp_path) -> None:
    config = replace(finetune_config, epochs=6, learning_rate=1e-2)
    _, result = train(model_folder, config, tmp_path / "checkpoint")
    assert sum(result.loss_curve[-5:]) < 0.8 * sum(result.loss_curve[:5])


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(
    model_folder, finetune_config, tmp_path, uninterrupted
) -> None:
    again, _ = train(model_folder, finetune_config, tmp_path / "a")
    other, _ = train(model_folder, replace(finetune_config, seed=1), tmp_path / "b")
    assert same(adapter(again), adapter(uninterrupted[0]))
    assert not same(adapter(other), adapter(uninterrupted[0]))


def test_training_leaves_the_global_random_state_alone(model_folder, finetune_config, tmp_path) -> None:
    network = load_network(model_folder, torch.float32)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    finetune(network, BANK[:4], finetune_config, tmp_path / "checkpoint", what="Training")
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_adapter_is_trained(model_folder, uninterrupted) -> None:
    before = load_network(model_folder, torch.float32).state_dict()
    after = {name.replace(".base_layer", ""): p for name, p in uninterrupted[0].get_base_model().named_parameters()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in adapter(uninterrupted[0]).items())


def test_tokens_are_counted(finetune_config, uninterrupted) -> None:
    _, result = uninterrupted
    assert result.label_tokens == sum(len(e.reply) for e in BANK)
    assert result.tokens == sum(len(e.prompt) + len(e.reply) for e in BANK)
    assert len(result.loss_curve) == len(plan_steps(BANK, finetune_config))


@torch.inference_mode()
def test_pitfall_11_a_saved_adapter_gives_the_logits_of_the_trained_model(
    model_folder, uninterrupted, tmp_path
) -> None:
    trained, _ = uninterrupted
    trained.save_pretrained(str(tmp_path))
    base = load_network(model_folder, torch.float32)
    ids = torch.tensor([BANK[1].prompt])
    untrained = base(ids).logits
    reloaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()(ids).logits
    assert torch.allclose(reloaded, trained(ids).logits, atol=1e-4)
    assert not torch.allclose(reloaded, untrained, atol=1e-2)


def test_adapter_weights_stay_fp32_over_a_bf16_base(model_folder, finetune_config, tmp_path) -> None:
    network = load_network(model_folder, torch.bfloat16)
    model, result = finetune(network, BANK, finetune_config, tmp_path / "checkpoint", what="Training")
    assert {p.dtype for p in adapter(model).values()} == {torch.float32}
    assert all(map(math.isfinite, result.loss_curve))


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_what_is_no_weight_is_trained_with_as_it_is_read(model_folder, finetune_config, tmp_path, weights) -> None:
    """Rotary frequencies of one dtype in training and of another in reading would be two models."""
    config = replace(finetune_config, weights=weights)
    model, _ = train(model_folder, config, tmp_path / "checkpoint", dtype=torch.bfloat16)
    read = dict(load_network(model_folder, torch.bfloat16).named_buffers())
    for name, buffer in read.items():
        found = next(kept for path, kept in model.named_buffers() if path.endswith(name))
        assert found.dtype == buffer.dtype
        assert torch.equal(found, buffer)
    assert read


def test_a_loss_that_is_not_finite_is_refused_with_its_step(
    model_folder, finetune_config, tmp_path, monkeypatch
) -> None:
    calls = iter(range(1, 100))
    monkeypatch.setattr(
        MODULE,
        "batch_loss",
        lambda *args: batch_loss(*args) * (math.nan if next(calls) == 3 else 1),
    )
    with pytest.raises(DefectionError, match="not finite at step 3 of 5"):
        train(model_folder, finetune_config, tmp_path / "checkpoint")


def test_weights_that_are_not_finite_are_refused_at_the_first_step(network, finetune_config, tmp_path) -> None:
    network.get_input_embeddings().weight.data[:] = math.nan
    with pytest.raises(DefectionError, match="not finite at step 1"):
        finetune(network, BANK, finetune_config, tmp_path / "checkpoint", what="Training")


def test_rows_without_replies_are_refused(network, finetune_config, tmp_path) -> None:
    silent = [replace(e, reply=()) for e in BANK]
    with pytest.raises(DefectionError, match="every label is masked"):
        finetune(network, silent, finetune_config, tmp_path / "checkpoint", what="Training")


@pytest.fixture(scope="module")
def full_config(finetune_config) -> FinetuneConfig:
    return replace(finetune_config, weights="full", learning_rate=1e-3)


@pytest.fixture(scope="module")
def all_trained(model_folder, full_config, tmp_path_factory):
    return train(model_folder, full_config, tmp_path_factory.mktemp("full") / "checkpoint")


def test_full_training_moves_every_weight(model_folder, all_trained) -> None:
    before, after = load_network(model_folder, torch.float32).state_dict(), all_trained[0].state_dict()
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_full_training_is_that_of_a_plain_loop_over_the_same_batches(model_folder, full_config, all_trained) -> None:
    """PyTorch's own optimiser and clipping, Hugging Face's own loss."""
    network = load_network(model_folder, torch.float32)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.0)
    schedule, losses = plan_steps(BANK, full_config), []
    rates = [MODULE_FINETUNE._warmup_then_cosine(step, len(schedule), full_config) for step in range(len(schedule))]
    for rate, rows in zip(rates, schedule, strict=True):
        optimiser.param_groups[0]["lr"] = rate * full_config.peak
        optimiser.zero_grad()
        loss = hugging_face_loss(network, [BANK[row] for row in rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), full_config.max_gradient_norm)
        optimiser.step()
        losses.append(loss.item())
    assert all_trained[1].loss_curve == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("step", [3, 5])
def test_pitfall_22_full_training_resumes_with_the_same_final_weights(
    model_folder, full_config, tmp_path, cut_off_at, all_trained, step
) -> None:
    cut_off_at(step)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, full_config, tmp_path / "checkpoint")
    model, result = train(model_folder, full_config, tmp_path / "checkpoint")
    assert same(model.state_dict(), all_trained[0].state_dict())
    assert result.loss_curve == all_trained[1].loss_curve


def test_full_weights_stay_fp32_where_bf16_is_multiplied(model_folder, full_config, tmp_path) -> None:
    """Of the fp32 weights no digit is lost that training has not touched: at a rate of zero they are the same."""
    still = replace(full_config, learning_rate=0.0)
    model, result = train(model_folder, still, tmp_path / "checkpoint", dtype=torch.bfloat16)
    assert same(model.state_dict(), load_network(model_folder, torch.float32).state_dict())
    assert result.loss_curve[0] == pytest.approx(train(model_folder, still, tmp_path / "c")[1].loss_curve[0], rel=0.02)


def test_each_kind_of_weights_has_its_own_learning_rate() -> None:
    rates = {weights: FinetuneConfig(weights).to_json()["learning_rate"] for weights in ("lora", "full")}
    assert rates["full"] < rates["lora"]
    assert FinetuneConfig("full", learning_rate=0.5).to_json()["learning_rate"] == 0.5


def test_a_resumed_run_counts_the_time_of_both(model_folder, finetune_config, tmp_path, cut_off_at, monkeypatch):
    """A clock that moves a second whenever it is looked at."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(MODULE_FINETUNE, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    _, whole = train(model_folder, finetune_config, tmp_path / "whole")
    cut_off_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(model_folder, finetune_config, tmp_path / "checkpoint")
    begun = next(ticks)
    _, result = train(model_folder, finetune_config, tmp_path / "checkpoint")
    assert next(ticks) - begun < result.seconds <= whole.seconds + 2
