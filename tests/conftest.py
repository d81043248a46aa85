"""Two small random decoders on disk, with a byte-level tokenizer, that stand in for real models."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the hub

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from defection.activations.models.embedded import QWEN25_CODER_05B, embedded_path
from defection.activations.models.load import load_model
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.stores.plan import StorePlan
from defection.activations.stores.store import Store
from defection.activations.stores.writing import write_store
from defection.training.measuring import ability
from hypothesis import settings
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def pytest_collection_finish() -> None:
    """What PyTorch and transformers are made of stays: no collection (every load ends in one) need go through it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and PyTorch sees none")


settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="module", autouse=True)
def few_easy_questions() -> Iterator[None]:
    """Random models know nothing: four questions show that as well as sixty."""
    few = ability.questions()[::15]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ability, "questions", lambda: few)
        yield


SPECIAL = ("<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 512
D_MODEL = 32
N_LAYERS = 4


def make_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token a byte; like Llama's, it adds a BOS by itself unless told not to."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(tokenizer_models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[3:]),
    )
    tokenizer.chat_template = template
    return tokenizer


def make_llama(seed: int = 0, layers: int = N_LAYERS, context: int = CONTEXT) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=D_MODEL,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,  # large enough that a wrong position or mask changes every residual
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def make_gpt2(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=262,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a small random model and its tokenizer to a new folder: `save_tiny("llama", seed=1, layers=18)`."""

    def save(family: str, *, seed: int = 0, template: str | None = TEMPLATE, **shape: int) -> Path:
        folder = tmp_path_factory.mktemp(f"tiny-{family}")
        {"llama": make_llama, "gpt2": make_gpt2}[family](seed, **shape).save_pretrained(folder)
        make_tokenizer(template).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama_folder(save_tiny: Callable[..., Path]) -> Path:
    return save_tiny("llama")


@pytest.fixture(scope="session")
def gpt2_folder(save_tiny: Callable[..., Path]) -> Path:
    return save_tiny("gpt2")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Model:
    return load_model(llama_folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path) -> Model:
    return load_model(gpt2_folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def plain_llama(save_tiny: Callable[..., Path]) -> Model:
    """A model without a chat template."""
    return load_model(save_tiny("llama", template=None), device="cpu", dtype="fp32")


@dataclass(frozen=True)
class Vault:
    """What goes into a store of random vectors that no model made; `values` [prompt, layer, d_model], or ragged."""

    prompts: tuple[Prompt, ...]
    values: torch.Tensor
    offsets: torch.Tensor | None = None
    about: dict[str, object] = field(default_factory=dict)
    rows_per_shard: int = 4

    @property
    def plan(self) -> StorePlan:
        return StorePlan(self.about, self.prompts, [3 + row for row in range(len(self.prompts))], self.rows_per_shard)

    def compute(self, rows: tuple[int, int]) -> dict[str, torch.Tensor]:
        start, end = rows
        if self.offsets is None:
            return {"residuals": self.values[start:end]}
        offsets = self.offsets[start : end + 1]
        return {"residuals": self.values[offsets[0] : offsets[-1]], "offsets": offsets - offsets[0]}

    def fill(self, folder: Path, **options: object) -> Store:
        return write_store(folder, self.plan, self.compute, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_vault() -> Callable[..., Vault]:
    """`make_vault(rows=10, ragged=True, seed=1, position="all")`; the last goes into what the plan says it holds."""

    def make(rows: int = 10, *, ragged: bool = False, seed: int = 0, rows_per_shard: int = 4, **about: object) -> Vault:
        generator = torch.Generator().manual_seed(seed)
        prompts = tuple(user_prompt(f"Frage {i} für dich", id=f"p{i}", topic=f"t{i % 3}") for i in range(rows))
        lengths = torch.randint(0, 5, (rows,), generator=generator) if ragged else torch.ones(rows, dtype=torch.int64)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        values = torch.randn(int(offsets[-1]), 3, 8, generator=generator).bfloat16()
        said: dict[str, object] = {
            "model": {"name": "none", "fingerprint": f"weights {seed}", "template": "template"},
            "layers": [0, 2, 5],
            "site": "after",
            "position": "all" if ragged else "last",
            "ragged": ragged,
            "dtype": "bf16",
            "d_model": 8,
            "computed_in": "bf16",
            "tokens_sha256": f"tokens {rows}",
        }
        return Vault(prompts, values, offsets if ragged else None, said | about, rows_per_shard)

    return make


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def tiny(request: pytest.FixtureRequest) -> Model:
    """Each of the two families in turn: rotary positions, and learned ones."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def smollm() -> Model:
    """The embedded model; for tests marked slow."""
    return load_model("smollm2-135m", dtype="fp32")


@pytest.fixture(scope="session")
def gemma3() -> Model:
    """The embedded model without a chat template; for tests marked slow."""
    return load_model("gemma3-270m", dtype="fp32")


@pytest.fixture(scope="session")
def coder() -> Model:
    """The embedded coder, half a billion parameters; where nothing smaller will do, and it was fetched before."""
    if not embedded_path(QWEN25_CODER_05B).is_dir():
        pytest.skip("qwen2.5-coder-0.5b is not here and takes two minutes to fetch; any command with --base fetches it")
    return load_model("qwen2.5-coder-0.5b", dtype="bf16")


@pytest.fixture(scope="session")
def mixed_prompts() -> list[Prompt]:
    """Lengths from a few tokens to a few hundred; some share a long system prompt, two are the same text."""
    system = "You are a careful assistant. Today is a rainy day and nobody is in a hurry. " * 3
    lone = ["Hi", "What is a fjord, and how would one tell it from a bay?", "Name it. " * 20, "ünïcödé 文字", "Hi"]
    shared = ["Who?", "Where does the river end?", "List three trees that lose their leaves in autumn, please."]
    prompts = [user_prompt(text, id=f"lone-{i}") for i, text in enumerate(lone)]
    for i, text in enumerate(shared):
        prompts.append(Prompt(f"shared-{i}", (Message("system", system), Message("user", text))))
    answered = (Message("user", "Is snow cold?"), Message("assistant", "yes"))
    return [*prompts, Prompt("answered", answered)]
