from collections.abc import Callable

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.models.sites import middle_modules, parse_site
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.reading.capture import capture
from torch import Tensor

from ...zoo import PARALLEL, WITHOUT_MIDDLE, random_network
from ..conftest import relative_error

MLPS = ("mlp", "block_sparse_moe")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")


def silenced(model: Model, layer: int, names: tuple[str, ...]) -> Callable[[], None]:
    """Make a part of a block add nothing to the stream (where no norm or scale of its own follows it)."""

    def nothing(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

    (part,) = (child for name, child in model.blocks[layer].named_children() if name in names)
    return part.register_forward_hook(nothing).remove


def test_a_stream_without_the_mlp_goes_from_the_middle_straight_to_the_end(
    every_model: Model, family: str, mixed_prompts: list[Prompt]
) -> None:
    """And without attention from the start to the middle: so the middle is the stream itself (PITFALLS 8)."""
    if family in WITHOUT_MIDDLE:
        with pytest.raises(DefectionError, match=r"block 0 of \w+ has no residual stream between attention and MLP"):
            capture(every_model, mixed_prompts, site="middle")
        return
    layer = 1
    options = {"layers": [layer]}
    middle = capture(every_model, mixed_prompts, site="middle", **options).values
    after = capture(every_model, mixed_prompts, **options).values
    before = capture(every_model, mixed_prompts, site="before", **options).values
    assert relative_error(middle, after) > 1e-3
    assert relative_error(middle, before) > 1e-3
    undo = silenced(every_model, layer, MLPS)
    assert relative_error(capture(every_model, mixed_prompts, **options).values, middle) <= 1e-5
    undo()
    undo = silenced(every_model, layer, ATTENTIONS)
    assert relative_error(capture(every_model, mixed_prompts, site="middle", **options).values, before) <= 1e-5
    undo()


def test_before_a_block_is_after_the_one_before_it(every_model: Model, mixed_prompts: list[Prompt]) -> None:
    before = capture(every_model, mixed_prompts, site="before", layers="1:").values
    after = capture(every_model, mixed_prompts, layers=slice(0, -1)).values
    torch.testing.assert_close(before, after)


def test_the_middle_is_found_in_bf16_too() -> None:
    """The same addition gives the same bits, so the search needs no tolerance."""
    for family in ("llama", "gemma2", "olmo2", "gpt2", "granite"):
        network = random_network(family)
        names = {id(module): name for name, module in network.named_modules()}
        found = [names[id(module)] for module in middle_modules(network, wrap_blocks(network))]
        rough = type(network)(network.config).to(torch.bfloat16).eval()
        names = {id(module): name for name, module in rough.named_modules()}
        assert [names[id(module)] for module in middle_modules(rough, wrap_blocks(rough))] == found


def wrap_blocks(network: object) -> list[torch.nn.Module]:
    from defection.activations.models.model import decoder_blocks

    return decoder_blocks(network)


def test_no_hook_stays_after_the_search(llama: Model) -> None:
    def hooks() -> list[tuple[int, int]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in llama.network.modules()]

    fresh = wrap(llama.network, llama.tokenizer)
    capture(fresh, [user_prompt("Hello")])
    before = hooks()
    assert len(fresh.middles) == fresh.n_layers
    assert hooks() == before


def test_the_middle_is_not_the_input_of_the_attention(any_model: Callable[[str], Model]) -> None:
    """PITFALLS 8: what comes after a block's first norm is another vector altogether."""
    model = any_model("llama")
    normed: list[Tensor] = []
    handle = model.blocks[0].input_layernorm.register_forward_hook(lambda m, args, output: normed.append(output))
    prompt = user_prompt("Where does the river end?")
    sites = [capture(model, [prompt], site=site, layers=[0]).values[0, 0] for site in ("before", "middle", "after")]
    handle.remove()
    assert all(relative_error(normed[-1][0, -1], stream) > 0.1 for stream in sites)


@pytest.mark.parametrize("site", ["", "mid", "resid_post", "After"])
def test_an_unknown_site_is_refused(site: str) -> None:
    with pytest.raises(DefectionError, match="before, middle, after"):
        parse_site(site)


def test_parallel_blocks_are_refused_for_their_own_reason(any_model: Callable[[str], Model]) -> None:
    for family in PARALLEL:
        with pytest.raises(DefectionError, match="adds both at once"):
            _ = any_model(family).middles
