"""Levers: what they change, that rows do not see one another, and that nothing stays behind."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from defection.activations import DefectionError, Model, capture, load_model, user_prompt
from defection.activations.models.wrap import wrap
from defection.probes import Ablate, Erase, Steer
from torch import Tensor

from ...zoo import FAMILIES, PARALLEL, random_network

PROMPTS = [user_prompt(text, id=text) for text in ("Who?", "Where does the river end?", "Tell me of bread and salt.")]


@pytest.fixture(scope="module")
def model(llama_folder) -> Model:
    return load_model(llama_folder, device="cpu", dtype="fp32")


def vectors(rank: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rank, 32, generator=torch.Generator().manual_seed(seed))


def logits(model: Model, rows: list[list[int]] | None = None) -> Tensor:
    tokens = torch.tensor(rows or [[3, 70, 80, 90, 100]])
    with torch.no_grad():
        return model.network(input_ids=tokens).logits


def hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules())


def levers(model: Model):
    class Eraser:
        read, write, centre = vectors(2), vectors(2, 1).mT, vectors()[0]

    yield Ablate(model, vectors(2))
    yield Steer(model, vectors(), alpha=-2.0, layers=[1])
    yield Erase(model, {2: Eraser})


@pytest.mark.parametrize("raised", [None, ValueError, KeyboardInterrupt])
def test_outputs_are_bit_equal_before_and_after(model: Model, raised: type[BaseException] | None) -> None:
    before, count = logits(model), hooks(model)
    for lever in levers(model):
        with pytest.raises(raised) if raised else nullcontext(), lever:
            assert not torch.equal(logits(model), before)
            if raised:
                raise raised
        assert torch.equal(logits(model), before)
        assert hooks(model) == count


def test_ctrl_c_while_hooks_are_put_on_leaves_none(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    count, last = hooks(model), model.blocks[-1]

    def interrupted(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(last, "register_forward_hook", interrupted)
    with pytest.raises(KeyboardInterrupt), Ablate(model, vectors()):
        pass
    assert hooks(model) == count


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_nothing_is_left_on_the_span_of_what_was_ablated(model: Model, rank: int) -> None:
    given = vectors(rank)
    with Ablate(model, given, layers=[1, 3]):
        seen = capture(model, PROMPTS)
    for layer in (1, 3):
        assert (seen.at(layer) @ given.T).abs().max() < 1e-4
    assert (seen.at(2) @ given.T).abs().max() > 1e-2


def test_what_is_left_is_the_centre(model: Model) -> None:
    given, centre = vectors(), vectors(seed=5)[0]
    with Ablate(model, given, layers=[1], centre=centre):
        seen = capture(model, PROMPTS, layers=[1]).at(1)
    torch.testing.assert_close(seen @ given[0], (centre @ given[0]).expand(3), rtol=1e-4, atol=1e-4)


def test_steering_adds_so_many_norms_and_both_signs_undo_one_another(model: Model) -> None:
    plain = capture(model, PROMPTS, layers=[2]).at(2)
    for alpha in (0.25, -4.0):
        with Steer(model, vectors(), alpha=alpha, layers=[2]):
            moved = capture(model, PROMPTS, layers=[2]).at(2) - plain
        torch.testing.assert_close(moved.norm(dim=1), abs(alpha) * plain.norm(dim=1), rtol=1e-4, atol=1e-4)
        assert (torch.sign(moved @ vectors()[0]) == torch.sign(torch.tensor(alpha))).all()
    with Steer(model, vectors(), alpha=3.0, layers=[2], norms={2: 7.0}):
        moved = capture(model, PROMPTS, layers=[2]).at(2) - plain
    torch.testing.assert_close(moved.norm(dim=1), torch.full((3,), 21.0), rtol=1e-4, atol=1e-3)
    with Steer(model, vectors(), alpha=3.0, norms=1.0, layers=[2]), Steer(model, -vectors(), alpha=3.0, norms=1.0):
        pass


def test_attention_and_mlp_ablated_at_every_layer_is_the_stream_ablated_but_for_the_embedding(model: Model) -> None:
    given = vectors(2)
    with Ablate(model, given, place="writes"):
        seen = capture(model, PROMPTS).values @ given.T
    embedded = capture(model, PROMPTS, layers=[0], site="before").values @ given.T
    torch.testing.assert_close(seen, embedded.expand_as(seen), rtol=1e-3, atol=1e-3)


def test_rows_of_a_batch_have_their_own_strength(model: Model) -> None:
    rows = [[3, 70, 80, 90], [3, 71, 81, 91], [3, 70, 80, 90]]
    plain = logits(model, rows)
    with Steer(model, vectors(), alpha=torch.tensor([0.0, 1.0, -2.0]), layers=[1]):
        found = logits(model, rows)
    assert torch.equal(found[0], plain[0])
    for row, alpha in ((1, 1.0), (2, -2.0)):
        with Steer(model, vectors(), alpha=alpha, layers=[1]):
            torch.testing.assert_close(logits(model, [rows[row]])[0], found[row], rtol=1e-4, atol=1e-4)
    with Ablate(model, vectors(), strength=torch.ones(2)), pytest.raises(DefectionError, match=r"2 rows.*has 3"):
        logits(model, rows)


def test_generation_with_cache_and_padding_is_that_of_each_prompt_alone_without_a_cache(model: Model) -> None:
    tokenizer, prompts = model.tokenizer, ["one", "a much longer prompt than that"]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    length, options = batch["input_ids"].shape[1], {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with Steer(model, vectors(), alpha=1.0, layers=[1, 2]), Ablate(model, vectors(seed=3), place="mlp"):
        together = model.network.generate(**batch, **options)[:, length:]
        for row, text in enumerate(prompts):
            alone = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            said = model.network.generate(**alone, **options, use_cache=False)[0, alone["input_ids"].shape[1] :]
            assert said.tolist() == together[row].tolist()
    assert model.network.generate(**batch, **options)[:, length:].tolist() != together.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_ablated_where_it_writes(model: Model, family: str) -> None:
    """The stream everywhere; attention and MLP where they can be told apart, in parallel blocks too."""
    other = wrap(random_network(family), model.tokenizer, family)
    given = vectors()
    with Ablate(other, given, layers=[1]):
        assert (capture(other, PROMPTS, layers=[1]).at(1) @ given[0]).abs().max() < 1e-4
    try:
        _ = other.writers
    except DefectionError:
        assert family in ("bloom", "mpt", "opt", "mamba")
        return
    with Ablate(other, given, layers=[1], place="writes"):
        before, after = (
            capture(other, PROMPTS, layers=[1], site=site).at(1) @ given[0] for site in ("before", "after")
        )
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)


def test_attention_and_mlp_are_called_by_their_names_in_parallel_blocks_too(model: Model) -> None:
    for family in (*PARALLEL, "llama", "granite", "gpt2"):
        network = random_network(family)
        names = {id(module): name.rsplit(".", 1)[-1] for name, module in network.named_modules()}
        for attention, mlp in wrap(network, model.tokenizer, family).writers:
            assert "att" in names[id(attention)], family
            assert "mlp" in names[id(mlp)], family


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: Ablate(model, vectors(), layers=[9]), "no layer 9.*0 to 3"),
        (lambda model: Ablate(model, torch.ones(8)), r"shape \(8,\).*32 wide"),
        (lambda model: Ablate(model, vectors(), place="nose"), "choose one of residual"),
        (lambda model: Ablate(model, {1: vectors()}, layers=[2]), "no vectors for layer 2"),
        (lambda model: Ablate(model, vectors() * float("nan")), "not finite"),
        (lambda model: Steer(model, vectors(2), alpha=1.0), "one direction a layer"),
        (lambda model: Erase(model, {}, layers=[1]), "no eraser for layer 1"),
    ],
)
def test_what_does_not_fit_is_refused(model: Model, make, said: str) -> None:
    with pytest.raises(DefectionError, match=said):
        make(model)


def test_a_lever_is_entered_once(model: Model) -> None:
    lever = Ablate(model, vectors())
    with lever, pytest.raises(DefectionError, match="entered already"), lever:
        pass
