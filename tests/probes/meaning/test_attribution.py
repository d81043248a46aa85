from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from defection.activations import DefectionError, capture, user_prompt
from defection.activations.models.wrap import wrap
from defection.probes import MeanDifference, contrast_set
from defection.probes.meaning.attribution import attribute, bridged
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPTNeoXConfig, GPTNeoXForCausalLM

PROMPTS = [user_prompt(text) for text in ("Hi", "What is a fjord?", "Name three trees, please.", "Where is it?")]
MARKS = [True, False, True, False]
SIZES = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def make_family(family: str, tokenizer):
    """Norms between a block's halves and the stream (Gemma), or both halves side by side (NeoX); biases and gains."""
    torch.manual_seed(0)
    network = (
        Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=16))
        if family == "gemma3"
        else GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return wrap(network, tokenizer)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3", "neox"])
def model(request):
    if request.param in ("llama", "gpt2"):
        return request.getfixturevalue(request.param)
    return make_family(request.param, request.getfixturevalue("llama").tokenizer)


@pytest.fixture(scope="module")
def probe(model):
    clean = [user_prompt(f"clean prompt number {i}", id=f"k{i}") for i in range(8)]
    return (
        MeanDifference()
        .fit(capture(model, contrast_set("six")), clean=capture(model, clean), fixed_layers=(1, 2))
        .probe_
    )


@pytest.mark.parametrize("layer", [0, 3])
def test_the_parts_sum_to_the_score(model, probe, layer: int) -> None:
    found = attribute(model, probe, PROMPTS, layer=layer)
    scores = probe.decision_function(capture(model, PROMPTS))[:, layer]
    torch.testing.assert_close(found.scores, scores, atol=2e-4, rtol=1e-4)
    assert [part.name for part in found.parts][:2] == ["embedding", "L0.H0"]
    assert len(found.parts) == 1 + (layer + 1) * (4 + 2) + 1
    assert max(part.block for part in found.parts) == layer
    assert (found.values[:, -1] == -probe.offsets[layer] / probe.scales[layer]).all()


def test_tables_are_the_same_numbers_summed_differently(model, probe) -> None:
    found = attribute(model, probe, PROMPTS)
    assert found.layer == 2
    scores = found.scores
    apart = float(scores[[0, 2]].mean() - scores[[1, 3]].mean())
    separating, cumulative = found.separating(MARKS), found.cumulative(MARKS)
    assert sum(row["value"] for row in separating) == pytest.approx(apart, abs=1e-4)
    assert cumulative[-1]["total"] == pytest.approx(apart, abs=1e-4)
    assert [row["block"] for row in cumulative] == [-1, 0, 1, 2]
    sizes = [abs(row["value"]) for row in separating]
    assert sizes == sorted(sizes, reverse=True)
    table = found.table()
    assert len(table) == len(PROMPTS) * len(found.parts)
    first = sum(row["value"] for row in table if row["prompt"] == PROMPTS[0].id)
    assert first == pytest.approx(float(scores[0]), abs=1e-4)


def test_the_running_total_is_the_projection_of_each_blocks_residual(llama) -> None:
    """The direction of layer 3 held against the residuals of all layers before it."""
    probe = MeanDifference().fit(capture(llama, contrast_set("six"))).probe_
    totals = [row["total"] for row in attribute(llama, probe, PROMPTS, layer=3).cumulative(MARKS)]
    projected = capture(llama, PROMPTS).values @ probe.directions[3] / probe.scales[3]
    apart = projected[[0, 2]].mean(dim=0) - projected[[1, 3]].mean(dim=0)
    torch.testing.assert_close(torch.tensor(totals[1:]), apart, atol=1e-4, rtol=1e-4)


def test_a_head_whose_output_is_taken_away_loses_its_share(llama) -> None:
    import copy

    probe = MeanDifference().fit(capture(llama, contrast_set("six")), fixed_layers=(0,)).probe_
    changed = wrap(copy.deepcopy(llama.network), llama.tokenizer)
    with torch.no_grad():
        changed.blocks[0].self_attn.o_proj.weight[:, 8:16] = 0  # head 1
    before = attribute(llama, probe, PROMPTS, layer=0)
    after = attribute(changed, replace(probe, model=changed.identity), PROMPTS, layer=0)
    head = [part.name for part in before.parts].index("L0.H1")
    assert before.values[:, head].abs().min() > 1e-3
    assert (after.values[:, head] == 0).all()
    others = [i for i, part in enumerate(before.parts) if part.kind in ("embedding", "head") and i != head]
    torch.testing.assert_close(before.values[:, others], after.values[:, others])


def test_pitfall_11_the_model_itself_is_left_as_it_was(llama) -> None:
    keys, config = set(llama.network.state_dict()), llama.network.config.to_dict()
    before = capture(llama, PROMPTS).values
    bridged(llama)
    assert set(llama.network.state_dict()) == keys
    assert llama.network.config.to_dict() == config
    assert torch.equal(capture(llama, PROMPTS).values, before)


def test_what_cannot_be_attributed_is_refused(llama, gpt2, monkeypatch) -> None:
    probe = MeanDifference().fit(capture(llama, contrast_set("six"))).probe_
    with pytest.raises(DefectionError, match="cannot score"):
        attribute(gpt2, probe, PROMPTS)
    with pytest.raises(DefectionError, match="not fitted at layer 9"):
        attribute(llama, probe, PROMPTS, layer=9)
    with pytest.raises(DefectionError, match="3 marks for 4 prompts"):
        attribute(llama, probe, PROMPTS).separating([True, False, True])
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(DefectionError, match="install it with"):
        bridged(llama)


def test_a_stream_that_is_written_to_in_another_way_is_refused(llama) -> None:
    """A block that adds something of its own: parts that do not add up must not be shown."""
    import copy

    class Odd(type(llama.blocks[0])):
        def forward(self, *args, **kwargs):
            return 1.5 * super().forward(*args, **kwargs)

    changed = wrap(copy.deepcopy(llama.network), llama.tokenizer)
    changed.blocks[1].__class__ = Odd
    probe = replace(MeanDifference().fit(capture(llama, contrast_set("six"))).probe_, model=changed.identity)
    with pytest.raises(DefectionError, match="do not add up"):
        attribute(changed, probe, PROMPTS, layer=2)


@pytest.mark.parametrize(("site", "position"), [("before", "-3"), ("middle", "last"), ("after", "mean:2:6")])
def test_the_parts_are_those_of_the_stream_that_the_probe_reads(model, site: str, position: str) -> None:
    if site == "middle" and model.network.config.model_type == "gpt_neox":
        pytest.skip("attention and MLP are added at once: there is no middle")
    where = {"site": site, "position": position}
    probe = MeanDifference().fit(capture(model, contrast_set("six"), **where)).probe_
    found = attribute(model, probe, PROMPTS, layer=2)
    scores = probe.decision_function(probe.read(model, PROMPTS))[:, 2]
    torch.testing.assert_close(found.scores, scores, atol=3e-4, rtol=1e-4)
    apart = float(scores[[0, 2]].mean() - scores[[1, 3]].mean())
    assert found.cumulative(MARKS)[-1]["total"] == pytest.approx(apart, abs=1e-3)
