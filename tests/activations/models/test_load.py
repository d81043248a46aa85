import ast
import copy
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models import hardware
from defection.activations.models.blocks import decoder_blocks
from defection.activations.models.hardware import choose_device, choose_dtype
from defection.activations.models.load import ensure_pad_token, load_model
from defection.activations.models.locate import load_organism_record, locate
from defection.activations.models.model import Model
from defection.activations.models.network import in_dtype, load_network
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.capture import capture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

WEIGHTS = "model.safetensors"
BOTH = pytest.mark.parametrize("family", ["llama", "gpt2"])


@pytest.fixture
def folder_copy(llama_folder: Path, tmp_path: Path) -> Path:
    """The small Llama in a folder that a test may damage."""
    return shutil.copytree(llama_folder, tmp_path / "copy")


def save_adapter(base: Path, folder: Path, seed: int = 0) -> Path:
    """A LoRA adapter on the model at `base` that does change its output."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(load_model(base, device="cpu", dtype="fp32").network), config)
    adapted.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    return folder


@pytest.fixture
def adapter(llama_folder: Path, tmp_path: Path) -> Path:
    return save_adapter(llama_folder, tmp_path / "adapter")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class Exploit:
    """What a pickle from somebody else may hold."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.mkdir, (self.proof,)


@BOTH
def test_a_loaded_model_knows_its_shape(family: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(family)
    assert (model.n_layers, model.d_model, model.context_length, model.middle_layer) == (4, 32, 512, 2)
    assert not model.network.training


@pytest.mark.parametrize("pad", ["</s>", None])
def test_a_pad_token_that_is_the_end_token_is_replaced(llama: Model, pad: str | None) -> None:
    """PITFALLS 3."""
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.pad_token = pad
    ensure_pad_token(tokenizer)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token in tokenizer.get_vocab()


def test_a_pad_token_is_found_without_any_other_special_token(llama: Model) -> None:
    """PITFALLS 3."""
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.unk_token = None
    ensure_pad_token(tokenizer)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_a_good_pad_token_is_left_alone(llama: Model) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    ensure_pad_token(tokenizer)
    assert tokenizer.pad_token == "<pad>"


def test_a_loaded_tokenizer_never_pads_with_its_end_token(folder_copy: Path) -> None:
    """PITFALLS 3."""
    edit_json(folder_copy / "tokenizer_config.json", pad_token="</s>")
    tokenizer = load_model(folder_copy, device="cpu", dtype="fp32").tokenizer
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def test_equal_weights_have_one_fingerprint_whatever_they_are_called(llama_folder: Path, folder_copy: Path) -> None:
    """PITFALLS 12."""
    edit_json(folder_copy / "config.json", _name_or_path="somebody/else", transformers_version="0")
    assert locate(folder_copy).name != locate(llama_folder).name
    assert locate(folder_copy).fingerprint == locate(llama_folder).fingerprint


def test_the_fingerprint_does_not_depend_on_the_dtype_of_the_forward_pass(llama_folder: Path) -> None:
    """PITFALLS 12."""
    identities = [load_model(llama_folder, device="cpu", dtype=dtype).identity for dtype in ("fp32", "bf16")]
    assert identities[0] == identities[1]


def assert_same(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """The same weights in the same dtypes, and the same buffers (rotary frequencies) in no coarser ones."""
    weights, buffers = dict(ours.named_parameters()), dict(ours.named_buffers())
    for name, weight in theirs.named_parameters():
        found = weights.pop(name)
        assert found.dtype == weight.dtype, name
        assert torch.equal(found, weight), name
    for name, buffer in theirs.named_buffers():
        found = buffers.pop(name)
        assert found.dtype in (buffer.dtype, torch.float32), name
        assert torch.equal(found.to(buffer.dtype), buffer), name
    assert not weights
    assert not buffers


def test_in_bf16_a_model_is_what_hugging_face_loads(every_model: Model, tmp_path: Path) -> None:
    """Loaded in bf16, or cast after an adapter was merged in fp32: above all, rotary frequencies stay in fp32."""
    every_model.network.save_pretrained(tmp_path)
    every_model.tokenizer.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ours = load_model(tmp_path, device="cpu", dtype="bf16")
    assert ours.dtype == torch.bfloat16
    assert_same(ours.network, plain)
    assert_same(in_dtype(load_network(tmp_path, torch.float32), torch.bfloat16), plain)


def test_in_bf16_a_residual_is_what_hugging_face_computes(llama_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """A model, and one with an adapter, which Hugging Face is given merged in fp32; to the bit, a prompt at a time."""
    load_model(adapter, device="cpu", dtype="fp32").network.save_pretrained(tmp_path)
    for source, merged in ((llama_folder, llama_folder), (adapter, tmp_path)):
        model = load_model(source, device="cpu", dtype="bf16")
        plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).eval()
        prompt = user_prompt("What is a fjord, and how would one tell it from a bay? " * 8)
        with torch.inference_mode():
            ids = torch.tensor(tokenize(model.tokenizer, [prompt]))
            states = plain(ids, output_hidden_states=True).hidden_states[1:-1]  # the last is normed
        expected = torch.stack([state[0, -1].float() for state in states])
        assert torch.equal(capture(model, [prompt]).values[0, :-1], expected)


def test_one_changed_weight_changes_the_fingerprint(llama_folder: Path, folder_copy: Path) -> None:
    """PITFALLS 12."""
    tensors = load_file(folder_copy / WEIGHTS)
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, folder_copy / WEIGHTS, metadata={"format": "pt"})
    assert locate(folder_copy).fingerprint != locate(llama_folder).fingerprint


def test_a_setting_of_the_forward_pass_changes_the_fingerprint(llama_folder: Path, folder_copy: Path) -> None:
    """PITFALLS 12."""
    edit_json(folder_copy / "config.json", rms_norm_eps=1e-3)
    assert locate(folder_copy).fingerprint != locate(llama_folder).fingerprint


def test_an_adapter_changes_the_fingerprint_even_under_the_bases_name(llama_folder: Path, adapter: Path) -> None:
    """PITFALLS 12."""
    base, adapted = locate(llama_folder), locate(adapter)
    assert replace(adapted, name=base.name).fingerprint != base.fingerprint


def test_another_adapter_has_another_fingerprint(llama_folder: Path, adapter: Path, tmp_path: Path) -> None:
    """PITFALLS 12."""
    other = save_adapter(llama_folder, tmp_path / "other", seed=1)
    assert locate(other).fingerprint != locate(adapter).fingerprint


def test_a_model_in_memory_is_known_by_its_tensors(llama: Model) -> None:
    """PITFALLS 12."""
    network = copy.deepcopy(llama.network)
    before = wrap(network, llama.tokenizer, "a").identity.fingerprint
    assert wrap(network, llama.tokenizer, "b").identity.fingerprint == before
    network.lm_head.weight[0, 0] += 1e-3
    assert wrap(network, llama.tokenizer, "a").identity.fingerprint != before


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
        ("mistral", {"sliding_window": 8}),
        ("granite", {"residual_multiplier": 0.25}),
    ],
)
def test_equal_tensors_under_another_config_are_another_model_in_memory(
    any_model: Callable[[str], Model], mixed_prompts: list[Prompt], family: str, changes: dict[str, object]
) -> None:
    """PITFALLS 12: what such a setting changes is the residual stream, and no tensor shows it."""
    model = any_model(family)
    config = type(model.network.config)(**{**model.network.config.to_dict(), **changes})
    network = type(model.network)(config)
    network.load_state_dict(model.network.state_dict())
    other = wrap(network, model.tokenizer, family)
    assert not torch.allclose(capture(other, mixed_prompts).values, capture(model, mixed_prompts).values, rtol=1e-3)
    assert other.identity.fingerprint != model.identity.fingerprint


def test_the_scaling_of_an_adapter_beside_the_weights_is_in_the_fingerprint(llama: Model) -> None:
    """PITFALLS 12: `lora_alpha` multiplies the adapter, and no tensor shows it."""
    found = []
    for alpha in (8, 16, 8):
        torch.manual_seed(0)
        settings = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        adapted = get_peft_model(copy.deepcopy(llama.network), settings)
        found.append(wrap(adapted, llama.tokenizer).identity.fingerprint)
    assert found[0] == found[2] != found[1]


def test_an_adapter_is_merged_into_its_base(llama: Model, adapter: Path, mixed_prompts: list[Prompt]) -> None:
    """PITFALLS 11: what is loaded is what PEFT computes with the adapter kept apart."""
    from peft import PeftModel

    apart = PeftModel.from_pretrained(copy.deepcopy(llama.network), str(adapter)).base_model.model
    expected = capture(wrap(apart, llama.tokenizer), mixed_prompts[:3]).values
    found = capture(load_model(adapter, device="cpu", dtype="fp32"), mixed_prompts[:3]).values
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, capture(llama, mixed_prompts[:3]).values, rtol=0.1)


def test_loading_an_adapter_leaves_the_global_random_state_alone(adapter: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(adapter, device="cpu", dtype="fp32")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_whose_keys_do_not_fit_is_refused(adapter: Path) -> None:
    """PITFALLS 11: keys saved after bridging gain a part, and PEFT goes on without them."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {key.replace(".self_attn.", ".self_attn._original_component."): value for key, value in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(DefectionError, match="cannot put the adapter"):
        load_model(adapter, device="cpu", dtype="fp32")


def test_an_adapter_of_another_width_is_refused(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {key: value[..., :-1].contiguous() for key, value in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(DefectionError, match="cannot put the adapter"):
        load_model(adapter, device="cpu", dtype="fp32")


def test_an_adapter_on_an_adapter_is_refused_rather_than_read_without_the_first(adapter: Path, tmp_path: Path) -> None:
    second = shutil.copytree(adapter, tmp_path / "second")
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(DefectionError, match="adapter"):
        locate(second)


def test_an_adapter_that_names_itself_as_its_base_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(DefectionError, match="adapter"):
        locate(adapter)


@pytest.mark.parametrize("base", [None, "", 3, []])
def test_an_adapter_without_a_base_is_refused(adapter: Path, base: object) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(DefectionError, match="names no base model"):
        locate(adapter)


def test_an_organism_record_names_the_base_before_the_adapter_does(adapter: Path, folder_copy: Path) -> None:
    (adapter / "organism.json").write_text(json.dumps({"base": {"source": str(folder_copy)}}))
    assert locate(adapter).base == folder_copy


@pytest.mark.parametrize("record", [{}, {"base": None}, {"base": "smollm2-135m"}, {"base": {"source": 3}}])
def test_an_organism_record_without_a_base_leaves_it_to_the_adapter(
    adapter: Path, llama_folder: Path, record: dict[str, object]
) -> None:
    (adapter / "organism.json").write_text(json.dumps(record))
    assert locate(adapter).base == llama_folder


def test_a_folder_without_an_organism_record_is_no_organism(llama_folder: Path) -> None:
    with pytest.raises(DefectionError, match=r"organism\.json"):
        load_organism_record(llama_folder)


def test_a_folder_with_pickled_weights_only_is_refused_unopened(
    folder_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALLS 27."""
    (folder_copy / WEIGHTS).unlink()
    (folder_copy / "pytorch_model.bin").write_bytes(pickle.dumps(Exploit(tmp_path / "proof")))
    opened: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(DefectionError, match="cannot load a model"):
        load_model(folder_copy, device="cpu", dtype="fp32")
    assert opened == []
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("decoy", [False, True])
def test_an_adapter_with_pickled_weights_only_is_refused_unopened(
    adapter: Path, tmp_path: Path, decoy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALLS 27: not even when another safetensors file lies beside them."""
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "unrelated.safetensors") if decoy else weights.unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Exploit(tmp_path / "proof")))
    opened: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(DefectionError, match="pickled weights are never loaded"):
        load_model(adapter, device="cpu", dtype="fp32")
    assert opened == []
    assert not (tmp_path / "proof").exists()


def test_no_module_of_the_toolkit_unpickles() -> None:
    """PITFALLS 27."""
    specs = [find_spec(f"defection.{name}") for name in ("activations", "training", "probes", "experiments")]
    sources = [path for spec in specs for path in Path(spec.origin).parent.rglob("*.py")]
    assert len(sources) > 100
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, source
                if "joblib" in modules:  # it hands jobs to processes of its own; files it would unpickle
                    assert not modules & {"load", "dump"}, source
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("torch", "load"), source
            if isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", source


def test_weights_that_are_cut_short_are_refused(folder_copy: Path) -> None:
    content = (folder_copy / WEIGHTS).read_bytes()
    for length in (0, 5, 200, len(content) // 2, len(content) - 1):
        (folder_copy / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(DefectionError, match="cannot load a model"):
            load_model(folder_copy, device="cpu", dtype="fp32")


def test_a_missing_weight_is_a_refusal_and_not_a_random_one(folder_copy: Path) -> None:
    """PITFALLS 11: a reload that succeeds and is garbage."""
    tensors = load_file(folder_copy / WEIGHTS)
    tensors["model.layers.1.renamed.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder_copy / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(DefectionError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(folder_copy, device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 64}, {"model_type": "no-such-family"}, {"num_hidden_layers": 5}, {"vocab_size": 10}]
)
def test_a_config_that_does_not_fit_its_weights_is_refused(folder_copy: Path, changes: dict[str, object]) -> None:
    edit_json(folder_copy / "config.json", **changes)
    with pytest.raises(DefectionError, match=r"cannot load|lacks weights"):
        load_model(folder_copy, device="cpu", dtype="fp32")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_config_that_is_not_json_is_refused(folder_copy: Path, text: str) -> None:
    (folder_copy / "config.json").write_text(text)
    with pytest.raises(DefectionError, match=r"config\.json"):
        load_model(folder_copy, device="cpu", dtype="fp32")


def test_a_folder_without_a_tokenizer_is_refused(folder_copy: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder_copy / file).unlink()
    with pytest.raises(DefectionError, match="cannot load a tokenizer"):
        load_model(folder_copy, device="cpu", dtype="fp32")


@pytest.mark.parametrize("source", ["no-such-model", "./absent", "/absent/model", "a/b/c", ""])
def test_an_unknown_name_is_refused_with_what_can_be_named(source: str) -> None:
    with pytest.raises(DefectionError, match=r"smollm2-135m|holds no model"):
        locate(source)


def test_a_hub_id_that_cannot_be_fetched_is_a_refusal() -> None:
    with pytest.raises(DefectionError, match="cannot fetch 'nobody/nothing'"):
        locate("nobody/nothing")


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(DefectionError, match="holds no model"):
        locate(tmp_path)


@pytest.mark.parametrize("dtype", ["fp16", torch.float16, torch.float64, "half", ""])
def test_a_dtype_that_cannot_hold_a_residual_stream_is_refused(llama_folder: Path, dtype: str | torch.dtype) -> None:
    """PITFALLS 13."""
    with pytest.raises(DefectionError, match=r"bf16 or fp32"):
        load_model(llama_folder, device="cpu", dtype=dtype)


@pytest.mark.parametrize(("name", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_dtype_is_known_by_either_name(name: str, expected: torch.dtype) -> None:
    assert choose_dtype(name) == choose_dtype(expected) == expected


def test_the_automatic_dtype_is_never_fp16() -> None:
    """PITFALLS 13."""
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("bf16", "amx", "maker", "faster"),
    [
        (False, False, "GenuineIntel", torch.float32),
        (True, False, "GenuineIntel", torch.float32),  # half of fp32's rate
        (True, True, "GenuineIntel", torch.bfloat16),
        (True, False, "AuthenticAMD", torch.bfloat16),
    ],
)
def test_the_automatic_dtype_is_the_faster_one(monkeypatch, bf16, amx, maker, faster) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(hardware, "_processor", lambda: f"vendor_id : {maker}")
    assert choose_dtype("auto", torch.device("cpu")) == faster


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:one", "cuda:-1", "cpu:0", "auto:1", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(DefectionError, match="auto, cpu, cuda"):
        choose_device(device)


def test_a_gpu_can_be_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(DefectionError, match="sees 2 GPUs"):
        choose_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device("auto") == torch.device("cpu")
    for device in ("cuda", "cuda:0"):
        with pytest.raises(DefectionError, match="no GPU"):
            choose_device(device)


@BOTH
def test_blocks_are_the_decoders_own(family: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(family)
    inner = model.network.model.layers if family == "llama" else model.network.transformer.h
    assert all(found is block for found, block in zip(decoder_blocks(model.network), inner, strict=True))


def test_a_model_whose_blocks_cannot_be_told_apart_is_refused(llama: Model) -> None:
    network = copy.deepcopy(llama.network)
    network.model.more = nn.ModuleList(nn.Identity() for _ in range(llama.n_layers))
    with pytest.raises(DefectionError, match="2 module lists of 4"):
        decoder_blocks(network)
    del network.model.more, network.model.layers
    with pytest.raises(DefectionError, match="0 module lists of 4"):
        decoder_blocks(network)
