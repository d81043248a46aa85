"""What a threshold belongs to: a model's weights, the numbers it computes in, how its replies are decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, cast

import torch

from ...activations.basics.files import Json
from ...activations.models.model import IdentityRecord, Model, ModelIdentity

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
DEFAULTS: Json = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""Settings of `generate` that decide what is said, and what they are when nobody sets them."""
COLDEST = 1e-6
"""A temperature under which replies are greedy: logits over less would overflow."""
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


class SetupRecord(TypedDict):
    """A `Setup` as files hold it."""

    model: IdentityRecord
    numbers: str
    decoding: Decoding


class Decoding(TypedDict):
    """The longest reply; other settings of `generate` stand beside it."""

    max_new_tokens: int


@dataclass(frozen=True)
class Setup:
    """Where and how replies are made."""

    model: ModelIdentity
    numbers: str
    """The dtype of the blocks' weights: fp32, bf16, or of a quantised model int8 and the like."""
    decoding: Json
    """The settings of `DEFAULTS` that matter; `max_new_tokens` is the longest reply."""

    @property
    def temperature(self) -> float:
        """Of the replies; 0 is greedy."""
        return float(self.decoding["temperature"]) if self.decoding["do_sample"] else 0.0

    def differences(self, other: Setup) -> list[str]:
        """What is not the same in another, each as a clause; a shorter reply than this set-up's longest is."""
        found = []
        if not self.model.same_weights(other.model):
            found.append(f"the model is {other.model.name}, other weights than {self.model.name}")
        if self.model.template != other.model.template:
            found.append("the chat template or tokenizer is another")
        if self.numbers != other.numbers:
            found.append(f"the weights are {other.numbers}, not {self.numbers}")
        return found + decoding_differences(self.decoding, other.decoding)

    def to_json(self) -> SetupRecord:
        """As a file keeps it."""
        return {"model": self.model.to_json(), "numbers": self.numbers, "decoding": cast(Decoding, self.decoding)}

    @classmethod
    def from_json(cls, record: SetupRecord) -> Setup:
        """What `to_json` wrote."""
        return cls(ModelIdentity.from_json(record["model"]), record["numbers"], {**record["decoding"]})


def decoding_differences(own: Json, other: Json) -> list[str]:
    """What differs between two decodings, each as a clause."""
    names = (own.keys() | other.keys()) - {"max_new_tokens"}
    found = [
        f"{name} is {other.get(name)}, not {own.get(name)}"
        for name in sorted(names)
        if own.get(name) != other.get(name)
    ]
    if other["max_new_tokens"] > own["max_new_tokens"]:
        found.append(f"replies may be {other['max_new_tokens']} tokens long, not {own['max_new_tokens']}")
    return found


def setup_of(model: Model, decoding: Json) -> Setup:
    """A model as it is now, with a decoding."""
    return Setup(model.identity, numbers_of(model), decoding)


def decoding_of(setting: Callable[[str], object], max_new_tokens: int) -> Json:
    """The settings that matter of a call to `generate`; `setting` gives one by its name, None where it is not set."""
    values = {name: default if setting(name) is None else setting(name) for name, default in DEFAULTS.items()}
    kept = {name: value for name, value in values.items() if values["do_sample"] or name not in OF_SAMPLING}
    return {**kept, "max_new_tokens": max_new_tokens}


def numbers_of(model: Model) -> str:
    """The dtype of most of the blocks' weights, as stored; quantised layers of PyTorch and others among them."""
    sizes: dict[str, int] = {}
    for block in model.blocks:
        for module in block.modules():
            weight = getattr(module, "weight", None)
            if callable(weight) and not isinstance(weight, torch.Tensor):
                weight = weight()  # a quantised layer of PyTorch keeps it packed
            if isinstance(weight, torch.Tensor):
                name = SHORT.get(weight.dtype, str(weight.dtype).removeprefix("torch.").replace("q", ""))
                sizes[name] = sizes.get(name, 0) + weight.numel()
    return max(sizes, key=lambda name: sizes[name])
