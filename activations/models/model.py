"""A decoder ready to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NotRequired, TypedDict

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .blocks import decoder_blocks
from .fingerprint import is_earlier
from .hardware import DTYPE_NAMES
from .locate import ModelFiles
from .reach import reach, skips_padding
from .sites import middle_modules, writing_modules


class IdentityRecord(TypedDict):
    """A `ModelIdentity` as files hold it."""

    name: str
    fingerprint: str
    template: str
    date: NotRequired[str | None]


@dataclass(frozen=True)
class ModelIdentity:
    """What a residual vector, or a probe, must say about where it comes from.

    Examples:
        >>> ModelIdentity("mine", "a", "b") == ModelIdentity("mine", "a", "b")
        True
    """

    name: str
    """What it was called when it was loaded; no part of its fingerprint."""
    fingerprint: str
    """Of the weights; see `ModelFiles.fingerprint`."""
    template: str
    """Of the tokenizer and chat template; see `template_fingerprint`."""
    date: str | None = None
    """What today is (YYYY-MM-DD) to a chat template that asks; None for one that does not."""
    earlier: Callable[[], tuple[str, ...]] = field(default=tuple, compare=False, repr=False)
    """The fingerprints that earlier versions gave the same weights; computed when somebody has another one."""

    def fingerprints(self) -> Iterator[str]:
        """That of this version, and then those of earlier ones."""
        yield self.fingerprint
        yield from self.earlier()

    def has_weights(self, fingerprint: str) -> bool:
        """Whether a fingerprint, of this version or an earlier one, is of these weights.

        Args:
            fingerprint: As a record holds it.
        """
        return self.fingerprint == fingerprint or (is_earlier(fingerprint) and fingerprint in self.earlier())

    def same_weights(self, other: ModelIdentity) -> bool:
        """Whether two identities are of the same weights, whichever version wrote them down.

        Args:
            other: The identity of another model, or of this one as a record tells it.
        """
        return self.has_weights(other.fingerprint) or other.has_weights(self.fingerprint)

    def weights_told_apart(self, other: ModelIdentity) -> str:
        """What to say of two identities whose weights do not seem the same: a clause for an error's sentence.

        Args:
            other: That of which `same_weights` said no.
        """
        if is_earlier(self.fingerprint) != is_earlier(other.fingerprint) and not (self.earlier() or other.earlier()):
            return "one of them was written down by an earlier version, so whether the weights are the same is unknown"
        return "the model weights differ"

    def to_json(self) -> IdentityRecord:
        """As files hold it: without a date where none is written, as before there were dates."""
        found = IdentityRecord(name=self.name, fingerprint=self.fingerprint, template=self.template)
        if self.date is not None:
            found["date"] = self.date
        return found

    @classmethod
    def from_json(cls, record: IdentityRecord) -> ModelIdentity:
        """The identity that `to_json` told of.

        Args:
            record: What it gave.
        """
        return cls(record["name"], record["fingerprint"], record["template"], record.get("date"))


@dataclass
class Model:
    """A decoder ready to be read: weights with any adapter merged in, its tokenizer, and who it is.

    Examples:
        >>> model.n_layers, model.d_model, model.middle_layer
        (4, 32, 2)
    """

    network: PreTrainedModel
    """Hugging Face's own model, with any adapter merged in."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer, with the chat template that prompts are rendered by."""
    identity: ModelIdentity
    """Who it is: name, fingerprint of weights and adapter, template."""
    files: ModelFiles | None = None
    """Where it was loaded from; None for a model that was in memory."""

    def __repr__(self) -> str:
        kind = type(self.network).__name__
        return f"<Model {self.identity.name!r}: {kind}, {self.n_layers} layers of {self.d_model}, {self.dtype}>"

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

    @property
    def dtype_name(self) -> str:
        """That dtype as files hold it: `fp32` or `bf16`; any other in the words of PyTorch."""
        return DTYPE_NAMES.get(self.dtype, str(self.dtype))

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
    def writers(self) -> list[tuple[nn.Module, nn.Module]]:
        """The attention and the MLP of each block, whose outputs are added to the stream; see `writing_modules`."""
        return writing_modules(self.network, self.blocks)

    @cached_property
    def reach(self) -> int:
        """Over how many tokens every layer attends; 0 where layers carry a running state."""
        return reach(self.network)

    @property
    def shares_prefixes(self) -> bool:
        """Whether keys and values can stand for what prompts share; otherwise each prompt is computed whole."""
        return self.reach > 0

    @cached_property
    def skips_padding(self) -> bool:
        """Whether prompts of unequal length can be padded before their replies (`reach.skips_padding`)."""
        return self.shares_prefixes and skips_padding(self.network)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.network.config.get_text_config().hidden_size)

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens have a row in the embeddings."""
        return int(self.network.get_input_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int:
        """The longest prompt the model takes, in tokens."""
        config = self.network.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    @property
    def middle_layer(self) -> int:
        """`n_layers // 2`: the layer of MacDiarmid et al. 2024."""
        return self.n_layers // 2
