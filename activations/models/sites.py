"""Where in a block the residual stream is read: before it, between attention and MLP, or after it.

A block of a sequential decoder adds twice to the stream:

    before ──┬──────────────────(+)── middle ──┬────────────(+)── after
             └─ norm ─ attention ┘             └─ norm ─ MLP ┘

Every site is the stream itself, never a normed copy of it (PITFALLS 8). A parallel block (GPT-J, Phi, Cohere, most of
GPT-NeoX) adds attention and MLP at once, so it has no `middle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..basics.errors import DefectionError
from .blocks import decoder_of, stream_of
from .modes import in_use

AFTER = "after"
SITES = ("before", "middle", AFTER)


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

    def reader(layer: int) -> Any:
        if at_input:
            return lambda module, args, kwargs: keep(layer, _given(args, kwargs))
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


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


@torch.inference_mode()
def middle_modules(network: PreTrainedModel, blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The child of each block whose input is the stream between attention and MLP (a norm, mostly).

    It is found by what that stream satisfies in a forward pass of a few tokens, not by a table of families: it is the
    block's input plus what one child returned (the attention, or a norm after it), and the block's output is it plus
    what another child returned. The same additions give the same bits, so the comparison is exact in every dtype.
    Raises DefectionError when a block has no such child.
    """
    inner = [getattr(block, "_original_component", block) for block in blocks]  # what a TransformerBridge wraps
    seen: list[_Seen] = [_Seen() for _ in blocks]
    handles = []
    for block, record in zip(inner, seen, strict=True):
        handles.append(block.register_forward_pre_hook(record.block_starts, with_kwargs=True))
        handles.append(block.register_forward_hook(record.block_ends))
        for child in block.children():
            handles.append(child.register_forward_pre_hook(record.child_starts, with_kwargs=True))
            handles.append(child.register_forward_hook(record.child_ends))
    embeddings = network.get_input_embeddings().weight
    scale = float(getattr(network.config.get_text_config(), "residual_multiplier", None) or 1.0)
    try:
        with in_use(network):
            decoder_of(network)(input_ids=torch.arange(3, 11, device=embeddings.device)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = [record.middle(scale) for record in seen]
    if None in found:
        raise DefectionError(
            f"block {found.index(None)} of {type(network).__name__} has no residual stream between attention and MLP "
            "(a parallel block adds both at once), or none that can be told apart; read before or after the block"
        )
    return [module for module in found if module is not None]


class _Seen:
    """What went into a block and its children, and what came out, in one forward pass."""

    def __init__(self) -> None:
        self.before: Any = None
        self.after: Any = None
        self.given: list[tuple[nn.Module, Tensor]] = []
        self.returned: list[Tensor] = []

    def block_starts(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.before = _given(args, kwargs).clone()

    def block_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        self.after = stream_of(output)

    def child_starts(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = _given(args, kwargs)
        if isinstance(stream, Tensor) and stream.shape == self.before.shape:
            self.given.append((module, stream.clone()))

    def child_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        added = stream_of(output)
        if isinstance(added, Tensor) and added.numel() == self.before.numel():
            self.returned.append(added.reshape(self.before.shape).clone())

    def middle(self, scale: float) -> nn.Module | None:
        def is_sum(whole: Tensor, part: Tensor) -> bool:
            return any(torch.equal(whole, part + added * scale) for added in self.returned)

        return next((m for m, s in self.given if is_sum(s, self.before) and is_sum(self.after, s)), None)
