"""Where in a block the residual stream is read: before it, between attention and MLP, or after it.

A block of a sequential decoder adds twice to the stream:

    before ──┬──────────────────(+)── middle ──┬────────────(+)── after
             └─ norm ─ attention ┘             └─ norm ─ MLP ┘

Every site is the stream itself, never a normed copy of it. A parallel block (GPT-J, Phi, Cohere, most of
GPT-NeoX) adds attention and MLP at once, so it has no `middle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..basics.errors import DefectionError
from .blocks import decoder_of, stream_of
from .modes import in_use

BEFORE, AFTER = "before", "after"
SITES = (BEFORE, "middle", AFTER)


class LastLayerReached(Exception):
    """Every wanted layer has been read; the rest of the forward pass is not needed."""


def parse_site(site: str) -> str:
    """`before`, `middle` or `after`; DefectionError for anything else."""
    if site not in SITES:
        raise DefectionError(f"unknown site {site!r}: a residual stream is read {', '.join(SITES)} the block")
    return site


@contextmanager
def gathering(
    modules: Sequence[nn.Module],
    layers: Sequence[int],
    rows: Int[Tensor, "vector"],
    tokens: Int[Tensor, "vector"],
    *,
    at_input: bool = False,
    stop: bool,
) -> Iterator[dict[int, Tensor]]:
    """Inside, a forward pass leaves `stream[rows, tokens]` [vector, d_model] of each layer in the dictionary given.

    The stream is what `modules[layer]` returns, or with `at_input` what it is given. With `stop` the pass ends, by
    `LastLayerReached`, after the last of the (ascending) layers.
    """
    picked: dict[int, Tensor] = {}

    def keep(layer: int, stream: Tensor) -> None:
        picked[layer] = stream[rows.to(stream.device), tokens.to(stream.device)]  # a model may span devices
        if stop and layer == layers[-1]:
            raise LastLayerReached

    def reader(layer: int) -> Callable[..., None]:
        if at_input:
            return lambda module, args, kwargs: keep(layer, given_stream(args, kwargs))
        return lambda module, args, output: keep(layer, stream_of(output))

    handles = [
        modules[layer].register_forward_pre_hook(reader(layer), with_kwargs=True)
        if at_input
        else modules[layer].register_forward_hook(reader(layer))
        for layer in layers
    ]
    try:
        yield picked
    finally:
        for handle in handles:
            handle.remove()


def given_stream(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The residual stream in what a block is given."""
    return args[0] if args else kwargs.get("hidden_states")


def middle_modules(network: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The child of each block whose input is the stream between attention and MLP (a norm, mostly).

    It is found by what that stream satisfies in a forward pass of a few tokens, not by a table of families: it is the
    block's input plus what one child returned (the attention, or a norm after it), and the block's output is it plus
    what another child returned. The same additions give the same bits, so the comparison is exact in every dtype.
    Raises DefectionError when a block has no such child.
    """
    scale = _multiplier(network)
    found = [record.middle(scale) for record in _watched(network, blocks)]
    if None in found:
        raise DefectionError(
            f"block {found.index(None)} of {type(network).__name__} has no residual stream between attention and MLP "
            "(a parallel block adds both at once), or none that can be told apart; read before or after the block"
        )
    return [module for module in found if module is not None]


def writing_modules(network: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[tuple[nn.Module, nn.Module]]:
    """The two children of each block whose outputs are added to the stream: its attention, and its MLP.

    Where a norm comes between (Gemma 2) it is the norm. Found as `middle_modules` are, and in parallel blocks, which
    add both at once, too. Raises DefectionError when what a block adds is not what two of its children return.
    """
    scale = _multiplier(network)
    found = [record.writers(scale) for record in _watched(network, blocks)]
    if None in found:
        raise DefectionError(
            f"what block {found.index(None)} of {type(network).__name__} adds to the residual stream is not what two "
            "of its children return, so its attention and MLP cannot be told apart; use the place 'residual'"
        )
    return [pair for pair in found if pair is not None]


def _multiplier(network: PreTrainedModel) -> float:
    """What a block's parts are multiplied by before they are added (Granite)."""
    return float(getattr(network.config.get_text_config(), "residual_multiplier", None) or 1.0)


@torch.inference_mode()
def _watched(network: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[_Seen]:
    """What goes in and out of each block in a forward pass of a few tokens."""
    inner = [getattr(block, "_original_component", block) for block in blocks]  # what a TransformerBridge wraps
    seen: list[_Seen] = [_Seen() for _ in blocks]
    handles = []
    for block, record in zip(inner, seen, strict=True):
        handles.append(block.register_forward_pre_hook(record.block_starts, with_kwargs=True))
        # Somebody's hook may change what the block returns, which is then no sum any more.
        handles.append(block.register_forward_hook(record.block_ends, prepend=True))
        for child in block.children():
            handles.append(child.register_forward_pre_hook(record.child_starts, with_kwargs=True))
            handles.append(child.register_forward_hook(record.child_ends))
    try_few_tokens(network, handles)
    return seen


def try_few_tokens(network: PreTrainedModel, handles: Sequence[RemovableHandle]) -> None:
    """A forward pass of a few tokens, for the hooks of these handles to see; they are gone afterwards."""
    embeddings = network.get_input_embeddings().weight
    try:
        with in_use(network):
            decoder_of(network)(input_ids=torch.arange(3, 11, device=embeddings.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


class _Seen:
    """What went into a block and its children, and what came out, in one forward pass."""

    def __init__(self) -> None:
        self.before = self.after = torch.empty(0)
        self.given: list[tuple[nn.Module, Tensor]] = []
        self.returned: list[tuple[nn.Module, Tensor]] = []

    def block_starts(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.before = given_stream(args, kwargs).clone()

    def block_ends(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        self.after = stream_of(output)

    def child_starts(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        stream = given_stream(args, kwargs)
        if isinstance(stream, Tensor) and stream.shape == self.before.shape:
            self.given.append((module, stream.clone()))

    def child_ends(self, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        added = stream_of(output)
        if isinstance(added, Tensor) and added.numel() == self.before.numel():
            self.returned.append((module, added.reshape(self.before.shape).clone()))

    def middle(self, scale: float) -> nn.Module | None:
        found = self._middle(scale)
        return None if found is None else found[0]

    def _middle(self, scale: float) -> tuple[nn.Module, Tensor] | None:
        def is_sum(whole: Tensor, part: Tensor) -> bool:
            return self._adding(whole, part, scale) is not None

        return next(((m, s) for m, s in self.given if is_sum(s, self.before) and is_sum(self.after, s)), None)

    def _adding(self, whole: Tensor, part: Tensor, scale: float) -> nn.Module | None:
        """The child whose output makes the whole of the part."""
        return next((m for m, added in self.returned if torch.equal(whole, part + added * scale)), None)

    def writers(self, scale: float) -> tuple[nn.Module, nn.Module] | None:
        if (middle := self._middle(scale)) is not None:
            attention = self._adding(middle[1], self.before, scale)
            mlp = self._adding(self.after, middle[1], scale)
            return None if attention is None or mlp is None else (attention, mlp)
        pairs = ((one, other) for i, one in enumerate(self.returned) for other in self.returned[i + 1 :])
        return next(((one[0], other[0]) for one, other in pairs if self._both(one[1], other[1])), None)

    def _both(self, attention: Tensor, mlp: Tensor) -> bool:
        """Whether the block adds both at once, in whichever order."""
        sums = (attention + mlp + self.before, attention + (mlp + self.before), mlp + (attention + self.before))
        return any(torch.equal(self.after, whole) for whole in sums)
