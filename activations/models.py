"""Models to read: an embedded name, a local directory (model, adapter or organism) or a Hugging Face id."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .chat import template_fingerprint
from .embedded import EMBEDDED, ensure_embedded
from .errors import DefectionError
from .files import Json, canonical, digest, file_digest, read_json
from .memory import give_back_memory
from .prefixes import reach
from .processes import this_process
from .sites import middle_modules

ORGANISM_FILE = "organism.json"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BRIDGED = "._original_component"
"""What a TransformerBridge puts into the names of the parameters of the model it is given (PITFALLS 11)."""


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's weights lie on disk."""

    name: str
    source: str
    """What names the base model on any machine that can have it: embedded name, hub id, or absolute path."""
    base: Path
    """Directory with full weights, config and tokenizer."""
    adapter: Path | None = None
    """Directory with a PEFT adapter that goes on top."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights, the adapter included, and every setting that changes the forward pass.

        It depends on neither the name nor the path (PITFALLS 12), nor on the dtype the weights are loaded in.
        """
        parts: dict[str, Any] = {"base": _weights_digests(self.base), "config": _config_digest(self.base)}
        if self.adapter is not None:
            settings = read_json(self.adapter / ADAPTER_FILE)
            settings.pop("base_model_name_or_path", None)
            parts |= {"adapter": _weights_digests(self.adapter), "adapter_config": settings}
        return digest(parts)


@dataclass(frozen=True)
class ModelIdentity:
    """What a residual vector, or a probe, must say about where it comes from."""

    name: str
    fingerprint: str
    """Of the weights; see `ModelFiles.fingerprint`."""
    template: str
    """Of the tokenizer and chat template; see `template_fingerprint`."""


@dataclass
class Model:
    """A decoder ready to be read: weights with any adapter merged in, its tokenizer, and who it is."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity
    files: ModelFiles | None = None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the forward pass runs in."""
        dtype: torch.dtype = next(self.network.parameters()).dtype
        return dtype

    @cached_property
    def weight_bytes(self) -> dict[torch.device, int]:
        """Of the parameters on each device; Hugging Face's `device_map` spreads a large model over several."""
        sizes: dict[torch.device, int] = {}
        for parameter in self.network.parameters():
            size = parameter.numel() * parameter.element_size()
            sizes[parameter.device] = sizes.get(parameter.device, 0) + size
        return sizes

    @cached_property
    def blocks(self) -> list[nn.Module]:
        """The decoder's blocks; the residual stream is what each returns."""
        return decoder_blocks(self.network)

    @cached_property
    def middles(self) -> list[nn.Module]:
        """The child of each block that is given the stream between attention and MLP; see `sites.middle_modules`."""
        return middle_modules(self.network, self.blocks)

    @cached_property
    def reach(self) -> int:
        """Over how many tokens every layer attends; 0 where layers carry a running state (`prefixes.reach`)."""
        return reach(self.network)

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values can stand for what prompts share; otherwise each prompt is computed whole."""
        return self.reach > 0

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int:
        """The longest prompt the model takes, in tokens."""
        config = self.network.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    @property
    def middle_layer(self) -> int:
        """`n_layers // 2`: the layer of MacDiarmid et al. 2024."""
        return self.n_layers // 2


def decoder_blocks(network: PreTrainedModel) -> list[nn.Module]:
    """The blocks of a Hugging Face decoder, whatever the family calls them (`layers`, `h`, `blocks`).

    They are the one ModuleList as long as the config's `num_hidden_layers`.
    Raises DefectionError when there is none, or more than one.
    """
    expected = int(network.config.get_text_config().num_hidden_layers)
    inner = network.get_decoder() if hasattr(network, "get_decoder") else network
    lists = [child for child in inner.children() if isinstance(child, nn.ModuleList) and len(child) == expected]
    if len(lists) != 1:
        raise DefectionError(
            f"{type(network).__name__} has {len(lists)} module lists of {expected} blocks, so its residual stream "
            "cannot be told apart; only plain decoders can be read"
        )
    return list(lists[0])


def wrap(network: PreTrainedModel | nn.Module, tokenizer: PreTrainedTokenizerBase, name: str = "in memory") -> Model:
    """A model that is already in memory, fingerprinted by its tensors and its config as they are now.

    A `PeftModel` is read as it is, its adapter beside the weights; the fingerprint covers both.
    """
    plain = _without_peft(network)
    state = hashlib.sha256(canonical(_settings(plain)))
    for key, tensor in sorted(_unbridged(plain).items()):
        state.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    ensure_pad_token(tokenizer)
    plain.eval()
    identity = ModelIdentity(name, state.hexdigest(), template_fingerprint(tokenizer))
    return Model(cast(PreTrainedModel, plain), tokenizer, identity)


def _unbridged(network: Any) -> dict[str, Tensor]:
    """A model's tensors by the names they had before TransformerLens bridged it, which adds some of its own."""
    tensors: dict[str, Tensor] = network.state_dict()
    if not any(BRIDGED in key for key in tensors):
        return tensors
    with torch.device("meta"):
        names = type(network)(network.config).state_dict().keys()
    plain = {key.replace(BRIDGED, ""): tensor for key, tensor in tensors.items()}
    return {key: tensor for key, tensor in plain.items() if key in names or "lora" in key}


def _settings(network: Any) -> Json:
    """What beside its tensors decides a forward pass: the config, and that of an adapter on it (a LoRA's scaling)."""
    adapters = getattr(network, "peft_config", {})
    return {
        "config": _deciding(json.loads(network.config.to_json_string(use_diff=False))),
        "adapters": {name: _adapter_settings(adapter) for name, adapter in adapters.items()},
    }


def _adapter_settings(adapter: Any) -> Json:
    settings = {name: sorted(v) if isinstance(v, set) else v for name, v in adapter.to_dict().items()}
    settings.pop("base_model_name_or_path", None)
    return cast(Json, json.loads(json.dumps(settings, default=str)))


def _without_peft(network: Any) -> nn.Module:
    """The model that a `PeftModel` wraps, adapter layers and all (PITFALLS 11); any other model itself."""
    if not hasattr(network, "peft_config"):
        return cast(nn.Module, network)
    from peft import PeftModel

    inner: nn.Module = network.base_model.model if isinstance(network, PeftModel) else network
    return inner


def locate(source: str | Path) -> ModelFiles:
    """Find a model's files, fetching an embedded model or a Hugging Face snapshot if need be.

    Raises DefectionError with what can be named when nothing is found.
    """
    path = Path(source)
    if str(source) in EMBEDDED:
        return ModelFiles(str(source), str(source), ensure_embedded(EMBEDDED[str(source)]))
    if path.is_dir():
        return _locate_directory(path)
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise DefectionError(
            f"unknown model {str(source)!r}: give an embedded name ({', '.join(EMBEDDED)}), a local directory or a "
            "Hugging Face id such as HuggingFaceTB/SmolLM2-360M-Instruct"
        )
    return ModelFiles(str(source), str(source), _snapshot(str(source)))


def _locate_directory(path: Path) -> ModelFiles:
    if (path / ADAPTER_FILE).exists():
        source = _base_source(path)
        if (Path(source) / ADAPTER_FILE).exists():
            raise DefectionError(
                f"{path} is an adapter on another adapter, {source}; merge that one into its base first"
            )
        return ModelFiles(path.name, source, locate(source).base, adapter=path)
    if (path / "config.json").exists():
        return ModelFiles(path.name, str(path.resolve()), path)
    raise DefectionError(f"{path} holds no model: neither config.json nor {ADAPTER_FILE} is there")


def _base_source(adapter: Path) -> str:
    """The base that the organism's record names, or else the adapter itself."""
    named = [read_json(adapter / ADAPTER_FILE).get("base_model_name_or_path")]
    if (adapter / ORGANISM_FILE).exists():
        base = read_json(adapter / ORGANISM_FILE).get("base")
        named.insert(0, base.get("source") if isinstance(base, dict) else None)
    for source in named:
        if isinstance(source, str) and source:
            return source
    raise DefectionError(f"{adapter / ADAPTER_FILE} names no base model; set base_model_name_or_path")


def _snapshot(identifier: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles, no code
    try:
        return Path(snapshot_download(identifier, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DefectionError(f"cannot fetch {identifier!r} from the Hugging Face hub: {reason}") from error


def load_organism_record(path: str | Path) -> dict[str, Any]:
    """Read `organism.json` of an organism directory; DefectionError when it is missing."""
    record = Path(path) / ORGANISM_FILE
    if not record.exists():
        raise DefectionError(
            f"{path} is not an organism: it has no {ORGANISM_FILE} (base, trigger and behaviour); "
            "`defection train` writes one, and the README shows how to write it for an organism made elsewhere"
        )
    return read_json(record)


def choose_device(device: str = "auto") -> torch.device:
    """`cpu`, `cuda` or one GPU by number, as in `cuda:1`; `auto` takes the GPU when there is one.

    Without a number each process of a launch takes its own GPU.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise DefectionError(f"unknown device {device!r}: choose auto, cpu, cuda, or a GPU by number as in cuda:1")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DefectionError(f"device {device!r} was asked for, but PyTorch sees no GPU; use --device auto or cpu")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if colon and int(number) >= there:
        raise DefectionError(f"device {device!r} was asked for, but PyTorch sees {there} GPUs, counted from cuda:0")
    return torch.device("cuda", int(number) if colon else this_process().local_rank % there)


def choose_dtype(dtype: str | torch.dtype = "auto", device: torch.device | None = None) -> torch.dtype:
    """fp32 or bf16; `auto` takes bf16 where the hardware multiplies it natively.

    fp16 is refused: residual streams overflow it (PITFALLS 13).
    """
    names = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if isinstance(dtype, torch.dtype):
        if dtype not in names.values():
            raise DefectionError(f"dtype {dtype} cannot hold a residual stream safely: use bf16 or fp32")
        return dtype
    if dtype in names:
        return names[dtype]
    if dtype != "auto":
        raise DefectionError(f"unknown dtype {dtype!r}: choose auto, bf16 or fp32")
    on_gpu = device is not None and device.type == "cuda"
    fast = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def load_model(source: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto") -> Model:
    """Load a model to read. An adapter is merged into the weights (in fp32), so every model is a plain decoder.

    Raises DefectionError for an unknown name, a directory without a model, weights that are not safetensors.
    """
    files = source if isinstance(source, ModelFiles) else locate(source)
    place = choose_device(device)
    compute = choose_dtype(dtype, place)
    network = load_network(files.base, torch.float32 if files.adapter else compute)
    if files.adapter is not None:
        network = in_dtype(with_adapter(network, files.adapter), compute)
    network = cast(PreTrainedModel, network.to(device=place).eval().requires_grad_(False))
    tokenizer = load_tokenizer(files)
    identity = ModelIdentity(files.name, files.fingerprint, template_fingerprint(tokenizer))
    give_back_memory()
    return Model(network, tokenizer, identity, files)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Keep the progress bars of `transformers` to itself."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def load_network(base: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Full weights from a local directory: safetensors only, no remote code."""
    try:
        with without_bars():
            loaded, found = AutoModelForCausalLM.from_pretrained(
                str(base),
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DefectionError(f"cannot load a model from {base}: {reason}") from error
    if found["missing_keys"]:  # Hugging Face would go on with random numbers in their place
        raise DefectionError(f"{base} lacks weights of its own config: {', '.join(sorted(found['missing_keys'])[:3])}")
    return cast(PreTrainedModel, loaded)


def in_dtype(network: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The network itself, its weights cast as `from_pretrained(dtype=…)` would have loaded them.

    What is no weight stays in fp32, above all the rotary frequencies (rounded to bf16, they turn a far position by
    another angle), and so do the few weights that an architecture keeps there.
    """
    kept = getattr(network, "_keep_in_fp32_modules_strict", None) or ()
    for name, weight in network.named_parameters():
        if not any(part in name for part in kept):
            weight.data = weight.data.to(dtype)
    return network


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """The tokenizer; an adapter directory's own if it has one. Its pad token is never its eos token."""
    has_own = files.adapter is not None and (files.adapter / "tokenizer_config.json").exists()
    folder = files.adapter if has_own and files.adapter else files.base
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DefectionError(f"cannot load a tokenizer from {folder}: {' '.join(str(error).split())[:300]}") from error
    ensure_pad_token(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token other than eos (PITFALLS 3), out of the tokens it already has."""
    eos = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token != eos:
        return
    for candidate in (tokenizer.unk_token, tokenizer.bos_token, "<|endoftext|>", "<pad>", "<unk>"):
        if candidate and candidate != eos and candidate in tokenizer.get_vocab():
            tokenizer.pad_token = candidate
            return
    others = (token for token in tokenizer.all_special_tokens if token != eos)
    token = next(others, None) or next(t for t, i in tokenizer.get_vocab().items() if i != tokenizer.eos_token_id)
    tokenizer.pad_token = token


PEFT_IS_BEHIND = "`is_gradient_checkpointing` is deprecated"
"""PEFT 0.21 asks transformers 5 by an older name, which is nothing that whoever loads or trains an adapter can mend."""


def with_adapter(network: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The network with a PEFT adapter's change added to its weights: load it in fp32, or small changes are lost.

    Raises DefectionError when the adapter is not safetensors or does not fit.
    """
    from peft import PeftModel

    if not (adapter / ADAPTER_WEIGHTS).exists():  # PEFT would unpickle adapter_model.bin instead (PITFALLS 27)
        raise DefectionError(f"{adapter} holds no {ADAPTER_WEIGHTS} (pickled weights are never loaded)")
    try:
        # PEFT draws weights before it loads them; whoever calls has a random state of their own.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # A key under another name would leave its layer as the base has it (PITFALLS 11).
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message=PEFT_IS_BEHIND)
            return cast(PreTrainedModel, PeftModel.from_pretrained(network, str(adapter)).merge_and_unload())
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise DefectionError(
            f"cannot put the adapter {adapter} on its base: {' '.join(str(error).split())[:300]}"
        ) from error


def _weights_digests(folder: Path) -> list[str]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DefectionError(f"{folder} holds no .safetensors weights (pickled weights are never loaded)")
    return [file_digest(file) for file in files]


def _config_digest(folder: Path) -> str:
    config = _deciding(read_json(folder / "config.json"))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _deciding(config: Json) -> Json:
    """A config without what changes nothing in a forward pass."""
    nothing = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    return {name: value for name, value in config.items() if name not in nothing}
