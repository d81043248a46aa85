"""Ablate, steer and erase directions while a model runs, in a `with` statement that leaves nothing behind.

What blocks, or their attentions and MLPs, write is changed token by token: rows of a batch do not see one another, and
padding, a cache and `generate` need no care. Each edit is x + s · f(x), computed in fp32 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...activations import DefectionError, Model
from ...activations.models.blocks import decoder_blocks
from ...activations.models.logits import without_peft
from ...activations.models.sites import writing_modules

RESIDUAL, ATTENTION, MLP, WRITES = "residual", "attention", "mlp", "writes"
PLACES = (RESIDUAL, ATTENTION, MLP, WRITES)
"""The stream after a block; what its attention, its MLP, or each of both adds to the stream."""

Vectors = Tensor | Mapping[int, Tensor]
"""[d_model] or [rank, d_model], for every layer alike or by layer."""


class Lever:
    """Changes what some layers of a model write while it is entered; the base of `Ablate`, `Steer` and `Erase`.

    `strength` scales the change: a number, or a tensor [row] with one for each row of the batch, of which 0 leaves a
    row bit for bit as it is. Raises DefectionError for layers the model lacks, vectors of another width, an unknown
    place, and, inside, for a batch that has not as many rows as `strength`.
    """

    def __init__(
        self, model: Model | PreTrainedModel, layers: Sequence[int], place: str, strength: float | Tensor
    ) -> None:
        if place not in PLACES:
            raise DefectionError(f"unknown place {place!r}: choose one of {', '.join(PLACES)}")
        self.network: PreTrainedModel = without_peft(model.network if isinstance(model, Model) else model)
        blocks = decoder_blocks(self.network)
        if missing := [layer for layer in layers if not 0 <= layer < len(blocks)]:
            raise DefectionError(f"the model has no layer {missing[0]}: its layers are 0 to {len(blocks) - 1}")
        self.layers = tuple(layers)
        self.strength = torch.as_tensor(strength, dtype=torch.float32)
        self._modules = _modules(self.network, blocks, self.layers, place)
        self._handles: list[RemovableHandle] = []

    def change(self, layer: int, stream: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        """What is added to the stream (or to what is written) at full strength.

        Args:
            layer: That it is written at.
            stream: As it was written, or what was.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        if self._handles:
            raise DefectionError("this lever is entered already; make another one to apply it twice")
        try:
            for layer, module in self._modules:
                self._handles.append(module.register_forward_hook(self._hook(layer)))
        except BaseException:  # Ctrl-C too: `__exit__` is not called when this fails
            self._release()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, layer: int) -> Callable[..., object]:
        def edit(module: nn.Module, args: tuple[object, ...], output: Any) -> object:
            if isinstance(output, tuple | list):
                return type(output)((self._edited(layer, output[0]), *output[1:]))
            return self._edited(layer, output)

        return edit

    def _edited(self, layer: int, stream: Tensor) -> Tensor:
        strength = self.strength.to(stream.device)
        if strength.ndim:
            if len(strength) != len(stream):
                raise DefectionError(f"strengths for {len(strength)} rows were given, but the batch has {len(stream)}")
            strength = strength.view(-1, *[1] * (stream.ndim - 1))
        exact = stream.to(torch.promote_types(stream.dtype, torch.float32))
        edited: Tensor = exact + strength.to(exact) * self.change(layer, exact)
        return edited.to(stream.dtype)


class Ablate(Lever):
    """Take the span of some vectors out of what is written: x − V(VᵀV)⁻¹Vᵀ(x − c), with c = 0 unless given.

    `vectors` [d_model] or [rank, d_model], for every layer alike or a mapping by layer; they need not be orthogonal.
    `layers`: all that the mapping names, or all of the model, unless given. `place`: `residual` (the stream after the
    block), `attention`, `mlp`, or `writes` (both). `centre` [d_model], or by layer: what is left on the span.
    Arditi et al. 2024, *Refusal in Language Models Is Mediated by a Single Direction*.

    Examples:
        >>> with Ablate(model, direction):
        ...     replies = model.network.generate(**batch, max_new_tokens=2)
    """

    def __init__(
        self,
        model: Model | PreTrainedModel,
        vectors: Vectors,
        *,
        layers: Sequence[int] | None = None,
        place: str = RESIDUAL,
        strength: float | Tensor = 1.0,
        centre: Vectors | None = None,
    ) -> None:
        chosen = _layers(model, vectors, layers)
        super().__init__(model, chosen, place, strength)
        width = self.network.config.get_text_config().hidden_size
        self._bases = {layer: orthonormal(_at(vectors, layer, width)) for layer in chosen}
        self._centres = {} if centre is None else {layer: _at(centre, layer, width)[0] for layer in chosen}

    def change(self, layer: int, stream: Tensor) -> Tensor:
        """Minus the projection."""
        basis = self._bases[layer].to(stream)
        away = stream - self._centres[layer].to(stream) if self._centres else stream
        change: Tensor = -(away @ basis.mT) @ basis
        return change


class Steer(Lever):
    """Add a direction to what is written: x + α · n · v / ‖v‖.

    `alpha`, a number or one a row [row], counts in norms n: each token's own, or those given as `norms` (a number, or
    one by layer), such as the mean norm of ordinary prompts there. Rank 1 only. Turner et al. 2023, *Activation
    Addition*.

    Examples:
        >>> with Steer(model, direction, alpha=-1, layers=[2]):
        ...     replies = model.network.generate(**batch, max_new_tokens=2)
    """

    def __init__(
        self,
        model: Model | PreTrainedModel,
        vectors: Vectors,
        *,
        alpha: float | Tensor,
        layers: Sequence[int] | None = None,
        place: str = RESIDUAL,
        norms: float | Mapping[int, float] | None = None,
    ) -> None:
        chosen = _layers(model, vectors, layers)
        super().__init__(model, chosen, place, alpha)
        width = self.network.config.get_text_config().hidden_size
        given = {layer: _at(vectors, layer, width) for layer in chosen}
        wide = next((layer for layer, rows in given.items() if len(rows) != 1), None)
        if wide is not None:
            raise DefectionError(f"steering takes one direction a layer; layer {wide} was given {len(given[wide])}")
        self._units = {layer: rows[0] / rows[0].norm().clamp_min(1e-30) for layer, rows in given.items()}
        self._norms = norms

    def change(self, layer: int, stream: Tensor) -> Tensor:
        """One norm of the direction."""
        unit = self._units[layer].to(stream)
        if self._norms is None:
            change: Tensor = stream.norm(dim=-1, keepdim=True) * unit
            return change
        norm = self._norms[layer] if isinstance(self._norms, Mapping) else self._norms
        pushed: Tensor = norm * unit
        return pushed.expand_as(stream)


class LinearEraser(Protocol):
    """What erases a concept at one layer."""

    @property
    def write(self) -> Tensor: ...  # noqa: D102
    @property
    def read(self) -> Tensor: ...  # noqa: D102
    @property
    def centre(self) -> Tensor: ...  # noqa: D102


class Erase(Lever):
    """Erase a concept: x − W R (x − c), with W [d_model, k], R [k, d_model] and c [d_model] of each layer.

    `erasers` by layer come of `concept_eraser` (LEACE, Belrose et al. 2023), or are any object with `write`, `read` and
    `centre`. The rest is as for `Ablate`, which is the case W = Rᵀ orthonormal.

    Examples:
        >>> from types import SimpleNamespace
        >>> first = torch.eye(32)[:1]
        >>> with Erase(model, {2: SimpleNamespace(write=first.mT, read=first, centre=torch.zeros(32))}):
        ...     erased = capture(model, prompts, layers=[2])
        >>> bool((erased.values[..., 0] == 0).all())
        True
    """

    def __init__(
        self,
        model: Model | PreTrainedModel,
        erasers: Mapping[int, LinearEraser],
        *,
        layers: Sequence[int] | None = None,
        place: str = RESIDUAL,
        strength: float | Tensor = 1.0,
    ) -> None:
        chosen = tuple(sorted(erasers)) if layers is None else tuple(layers)
        if missing := [layer for layer in chosen if layer not in erasers]:
            raise DefectionError(f"there is no eraser for layer {missing[0]}")
        super().__init__(model, chosen, place, strength)
        self._erasers = {layer: erasers[layer] for layer in chosen}

    def change(self, layer: int, stream: Tensor) -> Tensor:
        """Minus what the concept's readers see."""
        eraser = self._erasers[layer]
        read, write = eraser.read.to(stream), eraser.write.to(stream)
        change: Tensor = -((stream - eraser.centre.to(stream)) @ read.mT) @ write.mT
        return change


def orthonormal(rows: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """An orthonormal basis of the span of some rows, in fp64; rows of nothing but rounding are left out."""
    _, sizes, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    kept: Tensor = basis[sizes > 1e-6 * sizes.max().clamp_min(1e-30)]
    return kept


def _layers(model: Model | PreTrainedModel, vectors: Vectors, layers: Sequence[int] | None) -> tuple[int, ...]:
    if isinstance(vectors, Mapping):
        chosen = tuple(sorted(vectors)) if layers is None else tuple(layers)
        if missing := [layer for layer in chosen if layer not in vectors]:
            raise DefectionError(f"there are no vectors for layer {missing[0]}")
        return chosen
    network: PreTrainedModel = without_peft(model.network if isinstance(model, Model) else model)
    return tuple(range(len(decoder_blocks(network)))) if layers is None else tuple(layers)


def _at(vectors: Vectors, layer: int, width: int) -> Float[Tensor, "rank d_model"]:
    found = vectors[layer] if isinstance(vectors, Mapping) else vectors
    rows = found[None] if found.ndim == 1 else found
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DefectionError(
            f"vectors of shape {tuple(found.shape)} at layer {layer} do not fit a residual stream {width} wide"
        )
    if not torch.isfinite(rows).all():
        raise DefectionError(f"the vectors at layer {layer} hold numbers that are not finite")
    return rows.detach()


def _modules(
    network: PreTrainedModel, blocks: Sequence[nn.Module], layers: Sequence[int], place: str
) -> list[tuple[int, nn.Module]]:
    if place == RESIDUAL:
        return [(layer, blocks[layer]) for layer in layers]
    pairs = writing_modules(network, blocks)
    wanted = {ATTENTION: (0,), MLP: (1,), WRITES: (0, 1)}[place]
    return [(layer, pairs[layer][part]) for layer in layers for part in wanted]
