"""PITFALLS 11: an adapter is what PEFT runs with it, or it is refused in one sentence."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics.errors import DefectionError, DefectionWarning
from defection.activations.models.adapters import computed, with_adapter
from defection.activations.models.load import load_model
from defection.activations.models.network import load_network
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..conftest import relative_error

WEIGHTS = "adapter_model.safetensors"
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="session")
def tied_folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama, its two vocabulary matrices one."""
    folder = shutil.copytree(llama_folder, tmp_path_factory.mktemp("tied") / "model")
    network = AutoModelForCausalLM.from_pretrained(folder)
    network.lm_head.weight = network.model.embed_tokens.weight
    network.config.tie_word_embeddings = True
    network.save_pretrained(folder)
    return folder


def trained(base: Path, folder: Path, settings: Any, rows: int | None = None) -> list[torch.Tensor]:
    """Save an adapter "trained" by noise; give what it computed in memory, before it was saved."""
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        network.resize_token_embeddings(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(network, settings).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    edit(folder, base_model_name_or_path=str(base))
    return [] if settings.is_prompt_learning else computed(model.base_model.model)


def edit(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"layer_replication": [[0, 3], [1, 4]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
    ],
)
def test_what_is_loaded_is_what_was_trained(llama_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Residual streams and logits; also where replicated layers share a matrix, and where the base is changed first."""
    expected = trained(llama_folder, tmp_path, lora(**settings))
    found = computed(load_model(tmp_path, device="cpu", dtype="fp32").network)
    assert len(found) == len(expected)
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-4
    assert relative_error(found[-1], computed(load_network(llama_folder, torch.float32))[-1]) > 0.01


def test_a_change_that_no_weight_can_hold_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    trained(llama_folder, tmp_path, lora(lora_bias=True))
    with pytest.raises(DefectionError, match="the base layer has no bias"):
        load_model(tmp_path, device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": [*TARGETS, "lm_head"]},
        {"target_modules": [*TARGETS, "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": [*TARGETS, "embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [5, 6]},
    ],
)
def test_a_matrix_that_two_layers_share_is_changed_for_the_adapted_one_alone(
    tied_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Where the vocabulary matrices are tied, merging into one would change the other; also after being saved."""
    expected = trained(tied_folder, tmp_path / "adapter", lora(**settings))
    model = load_model(tmp_path / "adapter", device="cpu", dtype="fp32")
    model.network.save_pretrained(tmp_path / "merged")
    again = load_network(tmp_path / "merged", torch.float32)
    for network in (model.network, again):
        errors = [relative_error(a, b) for a, b in zip(computed(network), expected, strict=True)]
        assert max(errors) < 1e-4


@pytest.mark.parametrize("settings", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {}])
def test_an_adapter_that_came_with_new_tokens_brings_their_rows(
    llama_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = trained(llama_folder, tmp_path, lora(**settings), rows=264)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    tokenizer.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="fp32")
    assert model.network.get_input_embeddings().weight.shape[0] == len(model.tokenizer) == 264
    found = computed(model.network)
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-4


def test_new_rows_of_one_matrix_alone_are_refused(llama_folder: Path, tmp_path: Path) -> None:
    trained(llama_folder, tmp_path, lora(), rows=264)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "lm_head" not in name}, tmp_path / WEIGHTS)
    with pytest.raises(DefectionError, match="264 rows of the input embeddings, whose base has 262"):
        load_model(tmp_path, device="cpu", dtype="fp32")


@pytest.mark.parametrize("fault", ["fewer named", "more named"])
def test_every_key_of_the_file_is_accounted_for(llama_folder: Path, tmp_path: Path, fault: str) -> None:
    """Weights that fit nothing were dropped unseen, an error of 1.9 in the residual stream."""
    trained(llama_folder, tmp_path, lora())
    edit(tmp_path, target_modules=["q_proj"] if fault == "fewer named" else [*TARGETS, "up_proj"])
    missing = r"layers\.0\.mlp\.down_proj" if fault == "fewer named" else r"layers\.0\.mlp\.up_proj"
    with pytest.raises(DefectionError, match=missing):
        load_model(tmp_path, device="cpu", dtype="fp32")


def test_a_merge_that_computes_something_else_than_peft_is_refused(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora.layer import Linear

    trained(llama_folder, tmp_path, lora())
    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 1.5 * real(self, name))
    with pytest.raises(DefectionError, match="the stream after block 0 differs"):
        load_model(tmp_path, device="cpu", dtype="fp32")


def test_a_merge_is_tried_once(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defection.activations.models import adapters

    trained(llama_folder, tmp_path, lora())
    tried: list[object] = []
    monkeypatch.setattr(adapters, "computed", lambda network: tried.append(network) or computed(network))
    for _ in range(2):
        load_model(tmp_path, device="cpu", dtype="fp32")
    assert len(tried) == 2  # PEFT's and ours
    edit(tmp_path, lora_alpha=9)
    load_model(tmp_path, device="cpu", dtype="fp32")
    assert len(tried) == 4


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig])
def test_what_changes_no_weights_is_refused(llama_folder: Path, tmp_path: Path, kind: Callable[..., Any]) -> None:
    trained(llama_folder, tmp_path, kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(DefectionError, match="changes no weights, so it cannot be merged"):
        load_model(tmp_path, device="cpu", dtype="fp32")


def test_a_random_split_of_the_base_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    """Two loads of it were two models under one fingerprint."""
    trained(llama_folder, tmp_path, lora(init_lora_weights="pissa_niter_4"))
    with pytest.raises(DefectionError, match="pissa_niter_4, a random split"):
        load_model(tmp_path, device="cpu", dtype="fp32")


@pytest.mark.parametrize("kind", ["SUPERLORA", None, 3])
def test_a_kind_that_peft_does_not_know_is_named(llama_folder: Path, tmp_path: Path, kind: object) -> None:
    trained(llama_folder, tmp_path, lora())
    edit(tmp_path, peft_type=kind)
    with pytest.raises(DefectionError, match=r"adapter_config\.json says peft_type"):
        load_model(tmp_path, device="cpu", dtype="fp32")


def test_what_peft_warns_of_is_handed_on(llama_folder: Path, tmp_path: Path) -> None:
    trained(llama_folder, tmp_path, lora())
    edit(tmp_path, some_later_field=3)
    with pytest.warns(DefectionWarning, match="some_later_field"):
        load_model(tmp_path, device="cpu", dtype="fp32")


def test_small_changes_are_not_lost_in_bf16(llama_folder: Path, tmp_path: Path) -> None:
    """A base kept in bf16 is merged layer by layer in fp32: what comes out is the exact sum, rounded once."""
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(base)
    trained(base, tmp_path / "adapter", lora())
    exact = with_adapter(load_network(base, torch.float32), tmp_path / "adapter")
    found = load_model(tmp_path / "adapter", device="cpu", dtype="bf16").network
    for (name, ours), theirs in zip(found.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16()), name
