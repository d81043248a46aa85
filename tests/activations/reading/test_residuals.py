from dataclasses import replace

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.reading.capture import capture
from defection.activations.reading.residuals import Residuals, joined_residuals, offsets_of


@pytest.fixture(scope="module", params=["last", "all"])
def residuals(request: pytest.FixtureRequest, llama: Model, mixed_prompts: list[Prompt]) -> Residuals:
    return capture(llama, mixed_prompts, layers="0,2", position=request.param)


def test_selected_prompts_keep_their_vectors(residuals: Residuals) -> None:
    picked = residuals.select([2, 0, -1])
    assert picked.ids == tuple(residuals.ids[row] for row in (2, 0, -1))
    assert picked.n_tokens == tuple(residuals.n_tokens[row] for row in (2, 0, -1))
    for place, row in enumerate((2, 0, -1)):
        assert torch.equal(picked.of(place), residuals.of(row))
    assert len(picked.values) == sum(len(residuals.of(row)) for row in (2, 0, -1))


def test_prompts_are_found_by_their_ids_and_stand_as_they_are_given(residuals: Residuals) -> None:
    asked = [replace(residuals.prompts[row], set="another") for row in (2, 0, 2)]
    found = residuals.of_prompts(asked)
    assert torch.equal(found.values, residuals.select([2, 0, 2]).values)
    assert found.prompts == tuple(asked)
    with pytest.raises(DefectionError, match=f"'nobody' is not among the {len(residuals)} that were read"):
        residuals.of_prompts([*asked, replace(asked[0], id="nobody")])


def test_the_vectors_of_all_prompts_are_all_vectors(residuals: Residuals) -> None:
    assert torch.equal(torch.cat([residuals.of(row) for row in range(len(residuals))]), residuals.values)


def test_no_prompt_can_be_selected(residuals: Residuals) -> None:
    assert residuals.select([]).values.shape == (0, 2, 32)


def test_a_prompt_that_is_not_there_is_an_error(residuals: Residuals) -> None:
    with pytest.raises(IndexError):
        residuals.of(len(residuals))


def test_every_token_has_a_vector(llama: Model, mixed_prompts: list[Prompt]) -> None:
    residuals = capture(llama, mixed_prompts, position="all")
    assert residuals.offsets == offsets_of(residuals.n_tokens)


def test_a_layer_that_was_not_captured_is_refused(residuals: Residuals) -> None:
    assert torch.equal(residuals.at(2), residuals.values[:, 1])
    with pytest.raises(DefectionError, match=r"layer 1 was not captured.*0, 2"):
        residuals.at(1)


@pytest.mark.parametrize("offsets", [None, (0,), (0, 1, 2), (0, 2)])
def test_residuals_that_do_not_fit_their_prompts_are_refused(llama: Model, offsets: tuple[int, ...] | None) -> None:
    one = capture(llama, [user_prompt("Hello")])
    with pytest.raises(DefectionError, match="do not fit"):
        Residuals(one.values[[0, 0, 0]], one.layers, one.prompts, one.n_tokens, one.model, offsets=offsets)


def test_residuals_put_together_are_the_parts_and_others_are_refused(residuals: Residuals) -> None:
    if residuals.offsets is not None:
        return
    whole = joined_residuals([residuals.select([0, 1]), residuals.select([2, 3])])
    assert torch.equal(whole.values, residuals.values[:4])
    assert whole.ids == residuals.ids[:4]
    with pytest.raises(DefectionError, match="cannot be put together"):
        joined_residuals([residuals, replace(residuals, position="first-response")])


def test_layers_are_picked_in_the_order_asked_for(residuals: Residuals) -> None:
    turned = residuals.at_layers([2, 0])
    assert turned.layers == (2, 0)
    assert torch.equal(turned.at(2), residuals.at(2))
    assert torch.equal(turned.at_layers(residuals.layers).values, residuals.values)
    with pytest.raises(DefectionError, match="layer 1 was not captured"):
        residuals.at_layers([1])


def test_what_was_read_of_another_prompt_of_the_same_id_is_not_given(llama: Model) -> None:
    read = capture(llama, [user_prompt("Who?", id="p"), user_prompt("Where?", id="q")])
    assert read.of_prompts([user_prompt("Where?", id="q", topic="x")]).prompts[0].topic == "x"
    with pytest.raises(DefectionError, match="'p' said something else when it was read"):
        read.of_prompts([user_prompt("What?", id="p")])


def test_residuals_have_each_layer_once_and_rising_offsets(llama: Model) -> None:
    read = capture(llama, [user_prompt("Who?"), user_prompt("Where?")])
    with pytest.raises(DefectionError, match="one of them twice"):
        replace(read, layers=(0, 0, *read.layers[2:]))
    for offsets in ((1, 1, 2), (0, 3, 2)):
        with pytest.raises(DefectionError, match="never fall"):
            replace(read, offsets=offsets)
