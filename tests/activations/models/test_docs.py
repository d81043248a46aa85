"""The examples of the page on models and adapters run as they stand there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from defection.activations import load_model
from peft import LoraConfig, PeftModel, get_peft_model

from ...pages import enter_demo, run_example


def test_the_examples_run(save_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny("llama")
    adapted = get_peft_model(load_model(base).network, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    enter_demo(tmp_path / "adapter", tmp_path, monkeypatch)
    Path("org").mkdir()
    Path("org/large-model").symlink_to(base)
    names = run_example("how-to/models.md")
    assert names["model"].dtype == torch.bfloat16
    assert isinstance(names["network"], PeftModel)
