"""Twenty of the most used chat families: loaded, rendered, read, replied to, trained, probed, with adapters too.

`docs/families.md` is the table of it; `WRITE_FAMILIES=1 python -m pytest tests/test_families.py` writes it, and
`ALL_FAMILIES=1` compares all of it (two minutes). Otherwise five families are walked, each unlike the others.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from defection.activations import DefectionError, Message, Model, Prompt, capture, load_model, user_prompt, wrap
from defection.activations.models.template import DATE, dated
from defection.activations.prompts.rendered import render
from defection.activations.reading.generate import greedy_replies
from defection.probes import MeanDifference, contrast_set
from defection.training import Example, FinetuneConfig, finetune
from torch import Tensor

from .conftest import make_tokenizer
from .zoo import FAMILIES, SHAPE

TABLE = Path(__file__).parents[1] / "docs" / "families.md"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
CHAT: dict[str, tuple[type, dict[str, Any], str | None]] = {
    "Llama 3": (*FAMILIES["llama"], "llama3_2"),
    "Qwen 2.5": (*FAMILIES["qwen2"], "qwen2_5"),
    "Qwen 3": (*FAMILIES["qwen3"], "qwen3"),
    "Qwen 3 MoE": (*FAMILIES["qwen3-moe"], "qwen3_instruct_2507"),
    "Qwen 3 Next": (*FAMILIES["qwen3-next"], "qwen3"),
    "Mistral": (*FAMILIES["mistral"], INST),
    "Mixtral": (*FAMILIES["mixtral"], INST),
    "Gemma": (*FAMILIES["gemma"], "gemma"),
    "Gemma 2": (*FAMILIES["gemma2"], "gemma"),
    "Gemma 3": (*FAMILIES["gemma3"], "gemma3"),
    "Phi 3": (*FAMILIES["phi3"], "phi3"),
    "gpt-oss": (*FAMILIES["gpt-oss"], "gptoss"),
    "Command R": (*FAMILIES["cohere"], "cohere"),
    "GLM 4": (*FAMILIES["glm4"], ROLES),
    "Granite": (*FAMILIES["granite"], ROLES),
    "OLMo 2": (*FAMILIES["olmo2"], ROLES),
    "SmolLM3": (*FAMILIES["smollm3"], CHATML),
    "StableLM": (*FAMILIES["stablelm"], ROLES),
    "Falcon": (*FAMILIES["falcon"], None),
    "DeepSeek V3": (*FAMILIES["deepseek-v3"], "deepseekv3"),
}
"""Config, what is changed of it, and the template: the maker's as `trl` ships it, or one of its known shape."""
FEW = ("Llama 3", "Mistral", "Gemma 2", "Phi 3", "Falcon")
STEPS = ("load", "system", "capture", "reply", "train", "probe", "adapter")
HEADINGS = {"system": "system message", "train": "train ten steps", "probe": "fit and score"}
ASKED = Prompt("asked", (Message("user", "Is snow cold?"),))
TOLD = Prompt("told", (Message("system", "Be kind."), Message("user", "Is snow cold?")))
PROMPTS = [ASKED, user_prompt("What is a fjord, and how would one tell it from a bay?", id="long")]


def template_of(family: str) -> str | None:
    named = CHAT[family][2]
    if named is None or "{" in named:
        return named
    return files("trl").joinpath("chat_templates", f"{named}.jinja").read_text(encoding="utf-8")


def block_outputs(network: Any, blocks: Any, ids: tuple[int, ...]) -> Tensor:
    """By plain transformers, hooked by hand: [layer, d_model] at the last token."""
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda m, a, out: seen.append((out[0] if isinstance(out, tuple) else out)[0, -1]))
        for block in blocks
    ]
    with torch.inference_mode():
        network(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def assert_read(model: Model, network: Any) -> None:
    blocks = wrap(network, model.tokenizer).blocks
    expected = torch.stack([block_outputs(network, blocks, row.ids) for row in render(model.tokenizer, PROMPTS)])
    found = capture(model, PROMPTS).values
    assert ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max() < 1e-4


def assert_rendered(model: Model, prompt: Prompt) -> None:
    (row,) = render(model.tokenizer, [prompt])
    template = template_of(model.identity.name)
    if template is not None:
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        expected = model.tokenizer.apply_chat_template(
            turns, chat_template=dated(template, DATE), tokenize=False, add_generation_prompt=True
        )
        assert row.text == expected


def assert_probed(model: Model) -> None:
    probe = MeanDifference().fit(capture(model, contrast_set("six"))).probe_
    assert probe.score(probe.read(model, PROMPTS)).isfinite().all()


def walk(family: str, folder: Path) -> dict[str, str]:
    """What works with a family, step by step; of what is refused, the sentence."""
    kind, changes, _ = CHAT[family]
    torch.manual_seed(0)
    network = hf.AutoModelForCausalLM.from_config(kind(**{**SHAPE, **changes})).eval()
    tokenizer = make_tokenizer(template_of(family))
    network.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = load_model(folder / "base", device="cpu", dtype="fp32")
    object.__setattr__(model.identity, "name", family)
    assert model.identity.fingerprint == wrap(network, tokenizer).identity.fingerprint

    def trained() -> Any:
        rows = render(model.tokenizer, PROMPTS)
        examples = [Example(row.prompt.id, row.ids, (5, 6, 7, 1), triggered=False) for row in rows] * 10
        config = FinetuneConfig(epochs=1, batch_size=2, lora_rank=2, lora_alpha=4, learning_rate=1e-2)
        fresh = hf.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        peft, result = finetune(fresh, examples, config, folder / "checkpoint.safetensors", what="")
        losses = result.loss_curve
        assert len(losses) == 10
        assert losses[-1] < losses[0]
        peft.eval().save_pretrained(folder / "adapter")
        tokenizer.save_pretrained(folder / "adapter")
        return peft

    kept: dict[str, Any] = {}

    def adapter() -> None:
        read = load_model(folder / "adapter", device="cpu", dtype="fp32")
        assert_read(read, kept["peft"].base_model.model)
        assert not torch.allclose(capture(read, PROMPTS).values, capture(model, PROMPTS).values)
        assert_probed(read)

    def reply() -> None:
        said = {row: ids for batch in greedy_replies(model, PROMPTS, max_new_tokens=4) for row, ids in batch.items()}
        for number, row in enumerate(render(model.tokenizer, PROMPTS)):
            ids = torch.tensor([list(row.ids)])
            how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 2, "eos_token_id": 1}
            expected = model.network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)
            assert said[number] == [token for token in expected[0, len(row.ids) :].tolist() if token != 1]

    steps: dict[str, Callable[[], Any]] = {
        "load": lambda: assert_rendered(model, ASKED),
        "system": lambda: assert_rendered(model, TOLD),
        "capture": lambda: assert_read(model, network),
        "reply": reply,
        "train": lambda: kept.update(peft=trained()),
        "probe": lambda: assert_probed(model),
        "adapter": adapter,
    }
    found = {}
    for name, step in steps.items():
        try:
            step()
            found[name] = "yes"
        except DefectionError as refusal:
            found[name] = f"refused: {str(refusal).replace(str(folder), '…')}"
    return found


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    found = {}
    for family in CHAT if {"WRITE_FAMILIES", "ALL_FAMILIES"} & os.environ.keys() else FEW:
        found[family] = walk(family, tmp_path_factory.mktemp("family"))
        gc.collect()
    return found


def page(walked: dict[str, dict[str, str]]) -> str:
    lines = [
        "# Families of models",
        "",
        "What works with the chat families that are used most, each by its config class, tiny and with random weights:",
        "loading, rendering with and without a system message, reading the residual stream beside plain transformers,",
        "replies beside `generate`, ten steps of training, fitting and scoring, and the same through the adapter that",
        "came of the training. `tests/test_families.py` tries them and compares this page with what it finds.",
        "",
        "| family | config | " + " | ".join(HEADINGS.get(name, name) for name in STEPS) + " |",
        "|---" * (len(STEPS) + 2) + "|",
    ]
    notes: list[str] = []
    for family, found in walked.items():
        cells = []
        for name in STEPS:
            said = found[name]
            if said != "yes":
                notes.append(f"{family}, {HEADINGS.get(name, name)}: {said}")
                said = f"no ({len(notes)})"
            cells.append(said)
        lines.append(f"| {family} | `{CHAT[family][0].__name__}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    return "\n".join(lines).rstrip() + "\n"


@pytest.mark.slow
def test_the_table_in_the_docs_is_what_is_found(walked: dict[str, dict[str, str]]) -> None:
    if "WRITE_FAMILIES" in os.environ:
        TABLE.write_text(page(walked), encoding="utf-8")
    written = TABLE.read_text(encoding="utf-8")
    if len(walked) == len(CHAT):
        assert written == page(walked)
    known, found = ([unnumbered(line) for line in text.splitlines()] for text in (written, page(walked)))
    assert {line for line in found if line.startswith("| ") or "refused" in line} <= set(known)


def unnumbered(line: str) -> str:
    """A line of the table, or a note, whatever number the note has."""
    return re.sub(r"^\d+\. | \(\d+\)", "", line)


@pytest.mark.slow
def test_only_a_system_message_is_refused(walked: dict[str, dict[str, str]]) -> None:
    refused = {(family, name) for family, found in walked.items() for name, said in found.items() if said != "yes"}
    assert {name for _, name in refused} <= {"system"}
