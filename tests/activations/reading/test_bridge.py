from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models.load import load_model
from defection.activations.models.model import Model
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.bridge import as_activation_cache, from_bridge
from defection.activations.reading.capture import capture

from ..conftest import relative_error

HOOK = {"before": "hook_in", "middle": "hook_resid_mid", "after": "hook_out"}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest, save_tiny: Callable[..., Path]) -> tuple[Model, Any]:
    """The same weights as a model and as a bridge; a bridge changes the Hugging Face model it is given."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = save_tiny(request.param)
    model, given = (load_model(folder, device="cpu", dtype="fp32") for _ in range(2))
    return model, TransformerBridge.boot_transformers(
        str(folder), hf_model=given.network, tokenizer=given.tokenizer, device="cpu"
    )


def cached(bridge: Any, model: Model, prompt: Prompt) -> Any:
    """TransformerLens's own cache of one prompt, given as token ids and a mask (PITFALLS 4)."""
    tokens = torch.tensor(tokenize(model.tokenizer, [prompt]))
    with torch.inference_mode():
        return bridge.run_with_cache(tokens, attention_mask=torch.ones_like(tokens))[1]


@pytest.mark.parametrize("site", HOOK)
def test_a_capture_is_what_transformer_lens_caches(
    pair: tuple[Model, Any], mixed_prompts: list[Prompt], site: str
) -> None:
    """PITFALLS 10: every name is looked up, so a wrong one is an error here."""
    model, bridge = pair
    for prompt in mixed_prompts[1:4]:
        theirs = cached(bridge, model, prompt)
        ours = as_activation_cache(capture(model, [prompt], position="all", site=site))
        for layer in range(model.n_layers):
            expected = theirs[f"blocks.{layer}.{HOOK[site]}"]
            assert ours[f"blocks.{layer}.{HOOK[site]}"].shape == expected.shape
            assert relative_error(ours[f"blocks.{layer}.{HOOK[site]}"], expected) <= 1e-5


def test_the_short_names_of_transformer_lens_work(pair: tuple[Model, Any], mixed_prompts: list[Prompt]) -> None:
    model, bridge = pair
    residuals = capture(model, mixed_prompts)
    cache = as_activation_cache(residuals, bridge)
    assert torch.equal(cache["resid_post", 2], residuals.at(2)[:, None])


@pytest.mark.parametrize("site", HOOK)
def test_a_bridge_is_read_like_the_model_inside_it(
    pair: tuple[Model, Any], mixed_prompts: list[Prompt], site: str
) -> None:
    """PITFALLS 1, 4 and 11: batched, padded, with shared prefixes, and one BOS."""
    model, bridge = pair
    bridged = from_bridge(bridge)
    found = capture(bridged, mixed_prompts, site=site)
    expected = capture(model, mixed_prompts, site=site)
    assert found.n_tokens == expected.n_tokens
    assert relative_error(found.values, expected.values) <= 1e-5


def test_a_bridged_model_keeps_its_fingerprint(pair: tuple[Model, Any]) -> None:
    """PITFALLS 11: bridging renames the parameters, not the weights."""
    model, bridge = pair
    assert from_bridge(bridge).identity.fingerprint == wrap(model.network, model.tokenizer).identity.fingerprint


def test_what_a_hook_of_transformer_lens_changes_is_what_is_read(pair: tuple[Model, Any]) -> None:
    model, bridge = pair
    prompt = user_prompt("Where does the river end?")
    with bridge.hooks(fwd_hooks=[("blocks.1.hook_out", lambda stream, hook: stream * 2)]):
        found = capture(from_bridge(bridge), [prompt])
    assert relative_error(found.at(1), 2 * capture(model, [prompt]).at(1)) <= 1e-5


def test_processed_weights_are_refused(save_tiny: Callable[..., Path]) -> None:
    """PITFALLS 8."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = save_tiny("gpt2", seed=3)
    model = load_model(folder, device="cpu", dtype="fp32")
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=model.network, tokenizer=model.tokenizer, device="cpu"
    )
    bridge.enable_compatibility_mode()
    with pytest.raises(DefectionError, match="weights were processed"):
        from_bridge(bridge)


def test_prompts_of_different_lengths_do_not_fit_a_rectangle(llama: Model) -> None:
    residuals = capture(llama, [user_prompt("a", id="one"), user_prompt("abc", id="three")], position="all")
    with pytest.raises(DefectionError, match=r"'three' has \d+ vectors and 'one' has"):
        as_activation_cache(residuals)
