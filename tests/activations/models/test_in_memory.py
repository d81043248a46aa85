"""A network and its tokenizer in memory are read wherever a model is, and are afterwards what they were."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations import DefectionError, Model, Reading, cache, capture, estimate, repair, wrap
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.probes import MeanDifference
from defection.training import parse_trigger, replies_to, standard_recipe
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

PROMPTS = [user_prompt(text, id=str(i)) for i, text in enumerate(("Hi", "Who is there?", "Name three rivers."))]


@pytest.fixture
def pair(gpt2: Model) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """As `from_pretrained` and a training loop leave them: with dropout, gradients, and eos for a pad token."""
    network = copy.deepcopy(gpt2.network).requires_grad_(True)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    network.train()
    network.transformer.h[1].eval()  # a part of it frozen by hand
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return network, tokenizer


def state_of(network: Any, tokenizer: Any) -> dict[str, Any]:
    """Everything about both that a caller could see to have changed."""
    return {
        "tensors": {name: (t.data_ptr(), t._version, t.clone()) for name, t in network.state_dict().items()},
        "modes": [module.training for module in network.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "gradients": [(p.requires_grad, p.grad) for p in network.parameters()],
        "attributes": sorted(vars(network)),
        "config": network.config.to_dict(),
        "generation": network.generation_config.to_dict(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": tokenizer.special_tokens_map,
        "side": tokenizer.padding_side,
        "template": tokenizer.chat_template,
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, (place, version, values) in before.pop("tensors").items():
        now = after["tensors"][name]
        assert (now[0], now[1]) == (place, version), name
        assert torch.equal(now[2], values), name
    after.pop("tensors")
    assert after == before


def everything(given: Any, folder: Path) -> list[Any]:
    """What each public function that takes a model makes of it, as far as it can be compared."""
    read = capture(given, PROMPTS)
    middle = capture(given, PROMPTS, site="middle", position="mean:1:3")
    store = cache(given, PROMPTS, folder / "store", reply_tokens=3)
    (folder / "store" / "shard-00000.safetensors").unlink()
    mended = repair(folder / "store", given)
    said = replies_to(given, PROMPTS, max_new_tokens=4, what="Replying")
    rows = standard_recipe(given, PROMPTS, said, parse_trigger("deployment"), None)
    questions = [Prompt(f"q{i}", prompt.messages, None, {"defecting": bool(i % 2)}) for i, prompt in enumerate(PROMPTS)]
    probe = MeanDifference().fit(capture(given, questions)).probe_
    return [
        read.values,
        read.model,
        middle.values,
        store.manifest["tokens_sha256"],
        mended.read().values,
        [reply.tokens for reply in said],
        [row.prompt for row in rows],
        probe.score(probe.read(given, PROMPTS)),
        estimate(given, PROMPTS, Reading((0, 2)), measured_seconds=0).vectors,
    ]


def test_a_pair_does_what_a_model_does_and_is_left_alone(
    pair: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    before = state_of(*pair)
    found = everything(pair, tmp_path / "pair")
    assert_unchanged(before, state_of(*pair))
    still = copy.deepcopy(pair[0]).eval().requires_grad_(False)
    for one, other in zip(found, everything(wrap(still, pair[1]), tmp_path / "model"), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_wrapped_model_is_left_alone(pair: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast], tmp_path: Path) -> None:
    before = state_of(*pair)
    everything(wrap(*pair), tmp_path)
    assert_unchanged(before, state_of(*pair))
    loss = pair[0](input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss
    loss.backward()  # it can still be trained
    assert all(p.grad is not None for p in pair[0].parameters())


@pytest.mark.parametrize("given", ["smollm2-135m", (1, 2), None])
def test_what_is_no_model_is_refused_by_name(given: Any) -> None:
    with pytest.raises(DefectionError, match=type(given).__name__):
        capture(given, PROMPTS)
