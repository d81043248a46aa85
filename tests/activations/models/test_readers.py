"""Matrices that read the stream, in families that name and join them differently."""

from __future__ import annotations

import pytest
from defection.activations import DefectionError
from defection.activations.models.readers import reading_matrices


def names(model) -> list[list[str]]:
    return [
        sorted(name.rsplit(".", 1)[-1] for name in block) for block in reading_matrices(model.network, model.blocks)
    ]


def test_what_attention_and_mlp_are_given_is_read_and_what_they_return_is_not(llama, gpt2) -> None:
    """Llama's o_proj is as square as its q_proj."""
    assert names(llama) == [["gate_proj", "k_proj", "q_proj", "up_proj", "v_proj"]] * llama.n_layers
    assert names(gpt2) == [["c_attn", "c_fc"]] * gpt2.n_layers


def test_nothing_of_the_model_is_left_changed(llama) -> None:
    reading_matrices(llama.network, llama.blocks)
    assert not any(module._forward_pre_hooks for module in llama.network.modules())


def test_blocks_that_are_not_run_have_none(llama, gpt2) -> None:
    with pytest.raises(DefectionError, match="block 0 of LlamaForCausalLM has no matrix"):
        reading_matrices(llama.network, gpt2.blocks)
