"""Rows read as a tree end where each ends alone, in every family, whatever they share."""

from __future__ import annotations

import pytest
import torch
from defection.activations.models.wrap import wrap
from defection.activations.reading import branches
from defection.activations.reading.branches import read_ends

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import FAMILIES, random_network

SHARED = [[3, 4, 5, 6, 7, 8], [3, 4, 5, 9], [3, 4, 5, 6], [3, 4, 5, 10, 11, 12], [3, 4, 5, 6, 7, 9], [3, 4, 5, 6]]
UNLIKE, ALONE = [[5, 6, 7], [8, 9], [5, 6, 9, 1], [8]], [[7]]


def _alone(model, ids, layer):
    """What Hugging Face's own pass over each row gives, read off the block."""
    seen = []
    handle = model.blocks[layer].register_forward_hook(
        lambda block, args, output: seen.append((output[0] if isinstance(output, tuple) else output)[0, -1])
    )
    with torch.inference_mode():
        for row in ids:
            model.network(torch.tensor([row]), use_cache=False)
    handle.remove()
    return torch.stack(seen).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_ends_where_it_ends_alone(family) -> None:
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    for layer in (0, model.n_layers - 1):
        for ids in (SHARED, UNLIKE, ALONE):
            torch.testing.assert_close(read_ends(model, ids, layer), _alone(model, ids, layer), rtol=1e-4, atol=1e-4)


def test_what_rows_share_is_computed_once_and_small_trees_give_the_same(llama, monkeypatch) -> None:
    whole, seen = read_ends(llama, SHARED, 1), []
    forward = branches.forward
    monkeypatch.setattr(branches, "forward", lambda *given: seen.append(given[1].numel()) or forward(*given))
    assert torch.equal(read_ends(llama, SHARED, 1), whole)
    assert sum(seen) == len({tuple(row[:end]) for row in SHARED for end in range(1, len(row) + 1)})
    monkeypatch.setattr(branches, "automatic_batch_tokens", lambda model, reading: 2)
    torch.testing.assert_close(read_ends(llama, SHARED, 1), whole)
    assert read_ends(llama, [], 1).shape == (0, llama.d_model)
