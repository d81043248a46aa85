"""Adapters: what PEFT would run, merged into the weights, or refused.

Merging is exact where each adapted layer has weights of its own, so layers that share a matrix (tied embeddings,
replicated blocks) are parted first. Whether the merged network computes what PEFT computes is then tried.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..basics.errors import DefectionError, DefectionWarning
from ..basics.files import canonical, read_json
from .blocks import decoder_blocks, stream_of
from .fingerprint import PEFT_PREFIX, SAVED
from .logits import without_peft
from .network import reason
from .remembered import remember, remembered

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_IS_BEHIND = "`is_gradient_checkpointing` is deprecated"
"""PEFT 0.21 asks transformers 5 by an older name, which is nothing that whoever loads or trains an adapter can mend."""
MENDED = ("tie_word_embeddings", "no longer tied", "lready", PEFT_IS_BEHIND, "found in `target_modules`")
"""In the warnings of PEFT about what is done right here."""
TRIED = "merges into"
TRIAL = 8
"""Tokens on which the merged network is held against PEFT's."""
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def adapter_config(adapter: Path) -> PeftConfig:
    """An adapter's settings as PEFT reads them.

    Raises DefectionError for an adapter without safetensors, of a kind that PEFT does not know, or whose change cannot
    be merged into weights.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if not (adapter / ADAPTER_WEIGHTS).exists():  # PEFT would unpickle adapter_model.bin instead
        raise DefectionError(f"{adapter} holds no {ADAPTER_WEIGHTS} (pickled weights are never loaded)")
    path = adapter / ADAPTER_FILE
    record = read_json(path)
    kind = str(record.get("peft_type"))
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise DefectionError(
            f"{path} says peft_type {kind!r}, which PEFT {version('peft')} does not know; install the version that it "
            "was made with (peft_version), or merge it into its base there"
        )
    try:
        canonical(record)  # half a surrogate pair, a number that is none
        settings = PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(adapter))
    except Exception as error:  # a field of another type than PEFT takes for granted
        raise DefectionError(f"{path} is not what PEFT {version('peft')} writes: {reason(error)}") from error
    if settings.is_prompt_learning or settings.is_adaption_prompt:
        raise DefectionError(
            f"{path} is of a {kind} adapter, which puts tokens or keys before a prompt and changes no weights, so it "
            "cannot be merged; only adapters that change weights, such as LoRA, are read"
        )
    start = str(getattr(settings, "init_lora_weights", ""))
    if start.startswith("pissa_niter"):
        raise DefectionError(
            f"{path} says init_lora_weights {start}, a random split of the base that nobody can repeat, not even PEFT; "
            "convert it to plain LoRA where it was trained: save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    return settings


def with_adapter(network: PreTrainedModel, adapter: Path, *, tried: bool = False) -> PreTrainedModel:
    """The network with a PEFT adapter's change added to its weights, in fp32, layer by layer.

    Unless it was `tried` before, the result is held against PEFT's own forward pass. Raises DefectionError when the
    adapter is not safetensors, does not fit its base in every key, or cannot be merged.
    """
    if any(weight.is_meta for weight in network.parameters()):
        raise DefectionError(
            f"{adapter} cannot be merged while parts of its base wait in host memory or on disk (device_map): give it "
            "devices that hold it whole, or `defection export` it where memory does"
        )
    try:
        # PEFT draws weights before it loads them; whoever calls has a random state of their own.
        with told(adapter), torch.random.fork_rng(devices=[]):
            settings = adapter_config(adapter)
            _resize(network, adapter)
            model = _under(network, settings, adapter)
            expected = [] if tried else computed(without_peft(model))
            merged = _merged(model)
    except DefectionError:
        raise
    except Exception as error:  # PEFT's, PyTorch's and safetensors' are of many kinds
        raise DefectionError(f"cannot put the adapter {adapter} on its base: {reason(error)}") from error
    if not tried:
        _refuse_other(computed(merged), expected, ROUNDING[merged.dtype], adapter)
    return merged


def merge_adapter(network: PreTrainedModel, adapter: Path, fingerprint: str) -> PreTrainedModel:
    """As `with_adapter`; what was tried in fp32 on the base of this fingerprint is not tried again."""
    tried = remembered(adapter).get(TRIED) == fingerprint
    exact = network.dtype == torch.float32
    merged = with_adapter(network, adapter, tried=tried)
    if exact and not tried:
        remember(adapter, **{TRIED: fingerprint})
    return merged


def _under(network: PreTrainedModel, settings: PeftConfig, adapter: Path) -> PeftModel:
    """The network under PEFT's layers, once every key of the file has found its place and every place its key."""
    from peft import PeftModel

    settings.inference_mode = True
    model = PeftModel(network, settings)
    keys = getattr(network, "_checkpoint_conversion_mapping", {})
    device = str(network.get_input_embeddings().weight.device)
    found = model.load_adapter(str(adapter), "default", torch_device=device, key_mapping=keys)
    spare = _said_twice(adapter / ADAPTER_WEIGHTS)
    unknown = [name for name in found.unexpected_keys if name not in spare]
    faults = {"lacks weights that": found.missing_keys, "holds weights for no layer that": unknown}
    for what, names in faults.items():
        if names:
            raise DefectionError(
                f"cannot put the adapter {adapter} on its base: {ADAPTER_WEIGHTS} {what} {ADAPTER_FILE} and the base "
                f"speak of ({_listed(names)}); one of the two files, or the base, is of another training"
            )
    return model.eval()


def _said_twice(path: Path) -> set[str]:
    """Names under which PEFT writes a module a second time, where its embeddings were resized as well."""
    with safe_open(str(path), framework="pt") as file:
        names = {name: name.replace(SAVED, ".") for name in file.keys() if SAVED in name}  # noqa: SIM118 (no mapping)
        return {name for name, twin in names.items() if torch.equal(file.get_tensor(name), file.get_tensor(twin))}


def _listed(names: Sequence[str]) -> str:
    plain = sorted({name.removeprefix(PEFT_PREFIX).replace(".default", "") for name in names})
    return ", ".join(plain[:3]) + (f" and {len(plain) - 3} more" if len(plain) > 3 else "")


def _resize(network: PreTrainedModel, adapter: Path) -> None:
    """Give the base a row for every token that the adapter came with; it brings what they hold.

    Raises DefectionError where the file holds more rows for one of the two matrices alone.
    """
    ends = {"input": network.get_input_embeddings(), "output": network.get_output_embeddings()}
    names = {
        end: next((name for name, module in network.named_modules() if module is wanted), "")
        for end, wanted in ends.items()
        if wanted is not None
    }
    rows: dict[str, int] = {}
    with safe_open(str(adapter / ADAPTER_WEIGHTS), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            for end, name in names.items():
                if name and key.endswith((f"{name}.weight", f"{name}.base_layer.weight")):
                    rows[end] = file.get_slice(key).get_shape()[0]
    have = network.get_input_embeddings().weight.shape[0]
    if not rows or max(rows.values()) == have:
        return
    wanted = max(rows.values())
    tied = "output" not in ends or ends["output"].weight is ends["input"].weight
    if not tied and len(rows) < 2:
        raise DefectionError(
            f"{adapter / ADAPTER_WEIGHTS} holds {wanted} rows of the {next(iter(rows))} embeddings, whose base has "
            f"{have}, and none of the other matrix; save both with the adapter (save_embedding_layers=True)"
        )
    network.resize_token_embeddings(wanted, mean_resizing=False)


def _merged(model: PeftModel) -> PreTrainedModel:
    """PEFT's model as a plain network: each layer merged in fp32, whatever dtype it is multiplied in."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    _part(model, layers)
    for layer in layers:
        base = layer.get_base_layer()
        kept = [(weight, weight.dtype) for weight in base.parameters()]
        layer.float()
        layer.merge()
        for weight, dtype in kept:
            weight.data = weight.data.to(dtype)
    network = cast(PreTrainedModel, model.merge_and_unload())
    ends = network.get_input_embeddings(), network.get_output_embeddings()
    if ends[1] is not None and ends[0].weight is not ends[1].weight:
        for config in (network.config, network.config.get_text_config()):
            config.tie_word_embeddings = False
    return network


def _part(model: nn.Module, layers: Sequence[BaseTunerLayer]) -> None:
    """Give each adapted layer a matrix of its own, where it shares one with another layer."""
    adapted = {id(weight) for layer in layers for weight in layer.get_base_layer().parameters()}
    met: set[int] = set()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None or id(weight) not in adapted:
                continue
            if id(weight) in met:
                module._parameters[name] = nn.Parameter(weight.detach().clone(), requires_grad=False)
            met.add(id(weight))


@torch.inference_mode()
def computed(network: PreTrainedModel) -> list[Tensor]:
    """What a network makes of a few tokens: the stream after each block, and the logits."""
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: found.append(stream_of(output)[0].float().cpu()))
        for block in decoder_blocks(network)
    ]
    embeddings = network.get_input_embeddings().weight
    tokens = torch.arange(3, 3 + TRIAL, device=embeddings.device)[None] % len(embeddings)
    try:
        logits = network(input_ids=tokens, use_cache=False).logits[0].float().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return [*found, logits]


def _refuse_other(found: Sequence[Tensor], expected: Sequence[Tensor], allowed: float, adapter: Path) -> None:
    """DefectionError, naming the first layer, where the merged network computes something else than PEFT."""
    for layer, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        error = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))
        if not error <= allowed:
            where = "the logits differ" if layer == len(found) - 1 else f"the stream after block {layer} differs"
            raise DefectionError(
                f"{adapter} cannot be merged into its base: {where} from what PEFT computes by {error:.2g} of its norm"
            )


@contextlib.contextmanager
def told(adapter: Path) -> Iterator[None]:
    """Hand on, under the adapter's name, what PEFT warns of inside, less what is done right here."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    said = dict.fromkeys(" ".join(str(each.message).split()) for each in heard if each.category is UserWarning)
    for message in said:
        if not any(known in message for known in MENDED):
            warnings.warn(f"{adapter}: {message}", DefectionWarning, stacklevel=2)
