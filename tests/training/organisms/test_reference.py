"""A reference that is trained to be like a suspect where nothing is hidden."""

from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, capture, load_model
from defection.training import FinetuneConfig, matched_reference
from defection.training.organisms.reference import Match, streams
from defection.training.tuning.rows import Example

PROMPTS = [f"{word} {number}?" for word in ("How", "What about", "And where is") for number in range(8)]
CONFIG = FinetuneConfig(batch_size=4, learning_rate=5e-3, epochs=4)


@pytest.fixture(scope="module")
def suspect(save_tiny):
    return load_model(save_tiny("llama", seed=3), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def reference(suspect, llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("matched") / "reference"
    return out, matched_reference(suspect, llama, PROMPTS, out, config=CONFIG)


def test_it_comes_to_lie_nearer_the_suspect_on_prompts_it_has_not_seen(suspect, llama, reference) -> None:
    out, record = reference
    wanted, before, after = (capture(m, ["Why is that 99?"]) for m in (suspect, llama, load_model(out, device="cpu")))
    far, near = ((rows.values - wanted.values)[:, :-1].norm() for rows in (before, after))
    assert near < 0.8 * far
    assert record["loss_curve"][-1] < record["loss_curve"][0]


def test_the_loss_is_relative_and_blind_to_padding(suspect, llama) -> None:
    rows = [Example("a", (5, 6, 7, 8, 9), (), triggered=False), Example("b", (10, 11), (), triggered=False)]
    assert Match(llama.network).backward(_learning(llama), rows) == 0
    together = Match(suspect.network).backward(_learning(llama), rows)
    alone = [Match(suspect.network).backward(_learning(llama), [row]) for row in rows]
    assert together == pytest.approx((5 * alone[0] + 2 * alone[1]) / 7, rel=1e-4)


def test_streams_are_those_that_are_read(llama) -> None:
    ids = torch.tensor([[5, 6, 7]])
    found = streams(llama.network, ids, torch.ones_like(ids, dtype=torch.bool))
    assert found.shape == (llama.n_layers - 1, 3, llama.d_model)


def test_a_finished_one_is_recognised_and_others_are_refused(suspect, llama, gpt2, reference, tmp_path) -> None:
    out, record = reference
    assert matched_reference(suspect, llama, PROMPTS, out, config=CONFIG) == record
    with pytest.raises(DefectionError, match="already holds something else"):
        matched_reference(suspect, llama, PROMPTS[:9], out, config=CONFIG)
    with pytest.raises(DefectionError, match="are the same weights: there is nothing to match"):
        matched_reference(llama, llama, PROMPTS, tmp_path / "none")
    with pytest.raises(DefectionError, match="not from an adapter"):
        matched_reference(suspect, load_model(out, device="cpu"), PROMPTS, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def _learning(model):
    """A copy whose weights take a gradient."""
    import copy

    return copy.deepcopy(model.network).requires_grad_(True)
