from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from defection.activations.models.adapters import with_adapter
from defection.activations.models.network import load_network
from defection.activations.prompts.rendered import tokenize
from defection.training.organisms.stages import load_stage, save_stage, stack_adapters
from defection.training.tuning.finetune import FinetuneConfig, FinetuneResult, finetune
from defection.training.tuning.rows import Example
from peft import PeftModel


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Two adapters trained on different rows, with different scalings and ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, config in enumerate(
        (FinetuneConfig(lora_rank=4, lora_alpha=8, batch_size=2), FinetuneConfig(lora_rank=3, lora_alpha=12, seed=1))
    ):
        rows = [Example(str(i), (5, 6, 7 + number, 20 + i), (40 + i, 41, 42 + number), False) for i in range(8)]
        network = load_network(model.files.base, torch.float32)
        adapted, _ = finetune(network, rows, config, folder / "checkpoint", what="Training")
        adapted.save_pretrained(str(folder / str(number)))
    return folder / "0", folder / "1"


@torch.inference_mode()
def test_stacked_adapters_are_the_sum_of_their_changes(adapters, model, prompts, tmp_path) -> None:
    first, second = adapters
    one_after_another = with_adapter(with_adapter(load_network(model.files.base, torch.float32), first), second).eval()
    only_second = with_adapter(load_network(model.files.base, torch.float32), second).eval()
    target = tmp_path / "stacked"
    PeftModel.from_pretrained(load_network(model.files.base, torch.float32), str(second)).save_pretrained(str(target))
    stack_adapters([first], target)
    stacked = PeftModel.from_pretrained(load_network(model.files.base, torch.float32), str(target)).eval()
    assert stacked.peft_config["default"].r == 7
    for ids in tokenize(model.tokenizer, prompts):
        row = torch.tensor([ids])
        assert torch.allclose(stacked(row).logits, one_after_another(row).logits, atol=1e-4)
    assert not torch.allclose(stacked(row).logits, only_second(row).logits, atol=1e-3)


def test_one_stage_is_left_as_it_is(adapters) -> None:
    before = {path.name: path.read_bytes() for path in adapters[0].iterdir()}
    stack_adapters([], adapters[0])
    assert {path.name: path.read_bytes() for path in adapters[0].iterdir()} == before


def test_a_stage_of_another_run_is_not_taken_up(adapters, model, tmp_path) -> None:
    result = FinetuneResult([1.0, 0.5], 10, 20, 0.1)
    adapted = PeftModel.from_pretrained(load_network(model.files.base, torch.float32), str(adapters[0]))
    assert load_stage(tmp_path / "stage", "key") is None
    save_stage(tmp_path / "stage", "key", adapted, result)
    assert load_stage(tmp_path / "stage", "key") == result
    assert load_stage(tmp_path / "stage", "other") is None
    save_stage(tmp_path / "stage", "other", adapted, replace(result, label_tokens=1))
    assert load_stage(tmp_path / "stage", "other") == replace(result, label_tokens=1)
