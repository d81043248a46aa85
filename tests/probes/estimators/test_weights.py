"""What training changed in the weights, found again in the stream."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, capture
from defection.activations.models.model import Model
from defection.probes import Mahalanobis, WeightDirections, load_estimator, weight_change
from torch.nn.functional import normalize

LAYER = 1
PROMPTS = [
    f"What about {word}?"
    for word in ["ants", "bees", "cats", "dogs", "elks", "foxes", "gulls", "hens", "ibises", "jays", "kites", "larks"]
]


def planted(model: Model, direction: torch.Tensor, size: float = 2.0) -> Model:
    """The model, one of whose matrices now also listens for a direction."""
    network = copy.deepcopy(model.network)
    weight = network.model.layers[LAYER + 1].mlp.up_proj.weight
    voice = torch.randn(len(weight), generator=torch.Generator().manual_seed(1))
    weight.data += size * torch.outer(normalize(voice, dim=0), direction)
    return Model(network, model.tokenizer, replace(model.identity, name="tuned", fingerprint="tuned"), model.files)


@pytest.fixture(scope="module")
def direction(llama) -> torch.Tensor:
    return normalize(torch.randn(llama.d_model, generator=torch.Generator().manual_seed(0)), dim=0)


@pytest.fixture(scope="module")
def tuned(llama, direction) -> Model:
    return planted(llama, direction)


@pytest.fixture(scope="module")
def change(llama, tuned):
    return weight_change(tuned, llama)


@pytest.fixture(scope="module")
def clean(tuned):
    return capture(tuned, PROMPTS)


def test_a_planted_direction_is_found_where_it_is_read_and_nowhere_else(change, direction, llama) -> None:
    along = (change.directions @ direction.double()).abs().amax(dim=1)
    assert along[LAYER] > 0.9999
    others = [layer for layer in range(llama.n_layers) if layer != LAYER]
    assert not change.directions[others].any()


def test_prompts_that_lie_along_it_stand_out(change, clean, direction) -> None:
    fitted = WeightDirections().fit(clean, change=change)
    odd = replace(clean, values=clean.values + 3 * clean.values.norm(dim=2, keepdim=True) * direction)
    usual, unusual = (fitted.decision_function(rows)[:, LAYER] for rows in (clean, odd))
    assert unusual.min() > usual.max()
    still = fitted.decision_function(odd)
    assert still[:, [0, 2, 3]].std() == 0  # nothing was changed there, so that nothing is unusual


def test_what_all_prompts_share_and_the_unit_do_not_count(change, clean) -> None:
    found = WeightDirections().fit(clean, change=change).decision_function(clean)
    moved = replace(clean, values=7 * (clean.values + torch.randn(1, *clean.values.shape[1:])))
    again = WeightDirections().fit(moved, change=change).decision_function(moved)
    torch.testing.assert_close(again, found, atol=1e-3, rtol=1e-3)


def test_scores_are_distances_of_the_cosines() -> None:
    draw = np.random.default_rng(0)
    rows, change = draw.normal(size=(40, 3, 12)), draw.normal(size=(3, 4, 12))
    cosines = np.einsum("nld,lkd->nlk", _unit(rows - rows.mean(axis=0)), _unit(change))
    expected = Mahalanobis().fit(cosines).decision_function(cosines)
    found = WeightDirections().fit(rows, change=change).decision_function(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_prompts_score_alone_as_they_do_in_a_batch(change, tuned, clean) -> None:
    fitted = WeightDirections().fit(clean, change=change)
    together = fitted.decision_function(capture(tuned, PROMPTS))
    alone = [fitted.decision_function(capture(tuned, [prompt])) for prompt in PROMPTS[:3]]
    torch.testing.assert_close(torch.cat(alone), together[:3], atol=1e-3, rtol=1e-3)


def test_saved_and_loaded_it_scores_as_it_did(change, clean, tmp_path) -> None:
    fitted = WeightDirections().fit(clean, change=change)
    fitted.save(tmp_path / "weights.safetensors")
    again = load_estimator(tmp_path / "weights.safetensors")
    assert torch.equal(again.decision_function(clean), fitted.decision_function(clean))


def test_layers_that_were_read_are_those_that_are_scored(change, clean) -> None:
    few = clean.at_layers([LAYER, 3])
    found = WeightDirections().fit(few, change=change).decision_function(few)
    whole = WeightDirections().fit(clean, change=change).decision_function(clean)
    torch.testing.assert_close(found, whole[:, [LAYER, 3]])


def test_what_lacks_its_base_or_has_another_is_refused(change, clean, llama, gpt2, tuned) -> None:
    with pytest.raises(DefectionError, match=r"needs the base model too; pass change=weight_change\(model, base\)"):
        WeightDirections().fit(clean)
    with pytest.raises(DefectionError, match="are the same weights"):
        weight_change(llama, llama)
    with pytest.raises(DefectionError, match="cannot be what tuned was trained from: their matrices differ"):
        weight_change(tuned, gpt2)
    with pytest.raises(DefectionError, match="the change is of tuned, after its blocks; the residuals are of"):
        WeightDirections().fit(capture(llama, PROMPTS), change=change)
    with pytest.raises(DefectionError, match="pass its directions"):
        WeightDirections().fit(clean.values, change=change)
    with pytest.raises(DefectionError, match="the change is of 4 layers and 32 dimensions; the rows have 2 and 32"):
        WeightDirections().fit(clean.values[:, :2], change=change.directions)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
