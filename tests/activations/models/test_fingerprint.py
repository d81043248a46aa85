"""PITFALLS 12: a fingerprint is of what a network computes with, whatever files or memory hold it."""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.models import identity
from defection.activations.models.earlier import files_fingerprint, memory_fingerprint
from defection.activations.models.fingerprint import network_fingerprint, tensors_digest, values_digest
from defection.activations.models.load import load_model
from defection.activations.models.locate import locate
from defection.activations.models.model import Model, ModelIdentity
from defection.activations.models.remembered import RECORD, remember, remembered
from defection.activations.models.wrap import wrap
from defection.activations.prompts.prompts import Prompt
from defection.activations.reading.capture import capture
from defection.activations.stores.caching import cache
from defection.activations.stores.store import open_store
from defection.probes import MeanDifference, contrast_set, load_probe
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from ...zoo import random_network


def reload(folder: Path, **options: object) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_files_and_memory_have_one_fingerprint(family: str, tmp_path: Path, llama: Model) -> None:
    """In one file or in many, loaded by us or by Hugging Face, in their own dtype or a wider one."""
    network = random_network(family)
    network.save_pretrained(tmp_path / "one")
    network.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    llama.tokenizer.save_pretrained(tmp_path / "one")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    expected = network_fingerprint(network)
    assert load_model(tmp_path / "one", device="cpu", dtype="bf16").identity.fingerprint == expected
    assert locate(tmp_path / "many").fingerprint == expected
    assert wrap(reload(tmp_path / "one"), llama.tokenizer).identity.fingerprint == expected


def test_weights_kept_in_bf16_are_the_same_in_fp32_and_rounded_ones_are_others(
    llama_folder: Path, llama: Model, tmp_path: Path
) -> None:
    rounded = reload(llama_folder, dtype=torch.bfloat16)
    rounded.save_pretrained(tmp_path)
    widened = reload(tmp_path, dtype=torch.float32)
    assert network_fingerprint(rounded) == network_fingerprint(widened) == locate(tmp_path).fingerprint
    assert network_fingerprint(rounded) != llama.identity.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_a_digest_is_of_numbers_and_their_order(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 0, 3, 5, 7]).to(dtype)
    assert values_digest(values) == values_digest(values.clone())
    assert values_digest(values) != values_digest(values.flip(0))
    if dtype.is_floating_point:
        assert values_digest(values) == values_digest(values.double())
        assert values_digest(-0.0 * values) != values_digest(0.0 * values)


def test_what_lies_where_another_tensor_lay_is_read_anew() -> None:
    """Files of a checkpoint are read one after another, and their tensors take the places of those let go."""
    values = [torch.full((256, 256), float(number)) for number in range(12)]

    def named() -> Iterator[tuple[str, torch.Tensor]]:
        for number, each in enumerate(values):
            yield f"layer {number}", each.clone()
            time.sleep(0.02)  # until it was read and let go

    assert tensors_digest(named()) == tensors_digest([(f"layer {number}", each) for number, each in enumerate(values)])


def test_swapped_tensors_are_another_model(llama: Model) -> None:
    network = copy.deepcopy(llama.network)
    one, other = network.model.layers[0].mlp, network.model.layers[1].mlp
    network.model.layers[0].mlp, network.model.layers[1].mlp = other, one
    assert network_fingerprint(network) != llama.identity.fingerprint


@pytest.fixture
def adapter(llama_folder: Path, llama: Model, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(copy.deepcopy(llama.network), config).save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path=str(llama_folder))
    return tmp_path / "adapter"


def edit(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_in_files_and_in_memory_has_one_fingerprint(llama_folder: Path, adapter: Path, llama: Model) -> None:
    apart = PeftModel.from_pretrained(reload(llama_folder), str(adapter))
    expected = load_model(adapter, device="cpu", dtype="bf16").identity.fingerprint
    assert wrap(apart, llama.tokenizer).identity.fingerprint == expected
    assert wrap(apart.base_model.model, llama.tokenizer).identity.fingerprint == expected
    with apart.disable_adapter():
        assert wrap(apart, llama.tokenizer).identity.fingerprint == llama.identity.fingerprint


def test_what_an_adapter_config_lists_in_another_order_or_for_nothing_does_not_count(adapter: Path) -> None:
    expected = locate(adapter).fingerprint
    edit(adapter, target_modules=["down_proj", "q_proj", "v_proj"], lora_dropout=0.3, peft_version="0.1")
    assert locate(adapter).fingerprint == expected
    edit(adapter, lora_alpha=99)
    assert locate(adapter).fingerprint != expected


def test_what_is_known_of_files_is_kept_beside_them_until_they_change(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "copy")
    loaded: list[Path] = []
    real = identity.load_network
    monkeypatch.setattr(identity, "load_network", lambda base, dtype: loaded.append(base) or real(base, dtype))
    expected = locate(folder).fingerprint
    assert (folder / RECORD).exists()
    assert locate(folder).fingerprint == expected
    assert loaded == [folder]  # once, although the copy came with what was known of the files it is of
    weights = folder / "model.safetensors"
    about = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))  # as if it had been there all along
    assert locate(folder).fingerprint != expected


def test_where_nothing_can_be_written_beside_the_files_the_cache_directory_is_used(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "copy")
    monkeypatch.setenv("DEFECTION_CACHE", str(tmp_path / "cache"))
    (folder / RECORD).unlink(missing_ok=True)
    (folder / RECORD).mkdir()  # what cannot be replaced by a file
    remember(folder, fingerprint="this one")
    assert remembered(folder) == {"fingerprint": "this one"}
    assert list((tmp_path / "cache" / "known").iterdir())
    monkeypatch.setenv("DEFECTION_CACHE", str(llama_folder / "config.json" / "nowhere"))
    remember(folder, fingerprint="no place at all")
    assert remembered(folder) == {}


def test_what_an_earlier_version_left_is_recognised(
    llama_folder: Path, tmp_path: Path, mixed_prompts: list[Prompt], save_tiny: Callable[..., Path]
) -> None:
    """A probe, a store: their fingerprints are of files, and still of this model; of another they are refused."""
    folder = shutil.copytree(llama_folder, tmp_path / "model")
    model = load_model(folder, device="cpu", dtype="fp32")
    stranger = load_model(save_tiny("llama", seed=9), device="cpu", dtype="fp32")
    name, template = model.identity.name, model.identity.template
    before = replace(model, identity=ModelIdentity(name, files_fingerprint(folder, None), template))
    prompts = mixed_prompts[:4]
    values = cache(before, prompts, tmp_path / "store").read().values
    begun = (tmp_path / "store" / "manifest.json").read_bytes()
    store = cache(model, prompts, tmp_path / "store")
    assert (tmp_path / "store" / "manifest.json").read_bytes() == begun
    assert torch.equal(store.read().values, values)
    assert store.read().model == model.identity
    questions = contrast_set("six")
    MeanDifference().fit(capture(before, questions), clean=capture(model, prompts)).probe_.save(tmp_path / "probe")
    probe = load_probe(tmp_path / "probe")
    probe.refuse_model(model.identity)
    assert torch.equal(probe.decision_function(store.read()), probe.decision_function(open_store(store.path).read()))
    with pytest.raises(DefectionError, match="model weights differ"):
        probe.refuse_model(stranger.identity)
    with pytest.raises(DefectionError, match="whether the weights are the same is unknown"):
        probe.refuse_model(ModelIdentity(name, model.identity.fingerprint, template))


def test_an_earlier_fingerprint_in_memory_is_recognised_as_long_as_the_network_lives(llama: Model) -> None:
    network = copy.deepcopy(llama.network)
    model = wrap(network, llama.tokenizer)
    assert model.identity.has_weights(memory_fingerprint(network))
    assert not model.identity.has_weights("f" * 64)
