"""Folded weights do what the hooks do."""

from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, Model, load_model
from defection.activations.models.wrap import wrap
from defection.probes import Ablate
from defection.probes.levers.folding import orthogonalised

from ...zoo import random_network

VECTORS = {layer: torch.randn(2, 32, generator=torch.Generator().manual_seed(layer)) for layer in range(4)}
TOKENS = torch.tensor([[3, 70, 80, 90, 100]])


@pytest.fixture(scope="module")
def tokenizer(llama_folder):
    return load_model(llama_folder).tokenizer


@torch.no_grad()
def logits(network) -> torch.Tensor:
    return network(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen2", "granite"])
@pytest.mark.parametrize("place", ["attention", "mlp", "writes"])
def test_folded_weights_do_what_hooks_do(tokenizer, family: str, place: str) -> None:
    model: Model = wrap(random_network(family), tokenizer)
    before, layers = logits(model.network), (1, 2)
    folded = orthogonalised(model, VECTORS, layers, place)
    with Ablate(model, VECTORS, layers=layers, place=place):
        hooked = logits(model.network)
    torch.testing.assert_close(logits(folded), hooked, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hooked, before, atol=1e-3)
    assert torch.equal(logits(model.network), before)


def test_what_cannot_be_folded_is_refused(tokenizer) -> None:
    with pytest.raises(DefectionError, match="earlier layers wrote it"):
        orthogonalised(wrap(random_network("llama"), tokenizer), VECTORS, (1,), "residual")
    with pytest.raises(DefectionError, match="cannot be folded into weights"):
        orthogonalised(wrap(random_network("gemma2"), tokenizer), VECTORS, (1,), "writes")
