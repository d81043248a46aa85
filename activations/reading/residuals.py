"""Residual vectors of some prompts, and everything that must be known to use them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ..basics.errors import DefectionError
from ..basics.files import jsonl, write_tensors
from ..basics.headed import read_headed, understood
from ..models.model import IdentityRecord, ModelIdentity
from ..models.sites import AFTER
from ..prompts.loading import parse_prompts
from ..prompts.positions import LAST
from ..prompts.prompts import Prompt

RESIDUALS_SCHEMA = 1
RESIDUALS_HEADER = "defection_residuals"


class ResidualsHeader(TypedDict):
    """What the header of such a file holds."""

    layers: tuple[int, ...]
    prompts: str
    n_tokens: tuple[int, ...]
    model: IdentityRecord
    position: str
    site: str
    offsets: tuple[int, ...] | None


@dataclass(frozen=True)
class Residuals:
    """Residual vectors, and everything a probe must know about them.

    Most position rules give one vector a prompt: `values` is [prompt, layer, d_model] and `offsets` is None. A rule
    that gives several (`all`, `response`, a span) makes `values` [token, layer, d_model], prompt after prompt, and
    prompt `i` has the vectors `offsets[i]` to `offsets[i + 1]`.

    Examples:
        >>> residuals = capture(model, prompts)
        >>> residuals.at(2).shape, residuals.select([0, 3]).numpy().shape
        (torch.Size([4, 32]), (2, 4, 32))
    """

    values: Float[Tensor, "vector layer d_model"]
    """The vectors, in the dtype that was asked for."""
    layers: tuple[int, ...]
    """The block whose stream each `values[:, i]` is (0 … n_layers−1; at site `after` its output, before any norm)."""
    prompts: tuple[Prompt, ...]
    """Whose they are, in the order of the rows."""
    n_tokens: tuple[int, ...]
    """Length of each rendered prompt."""
    model: ModelIdentity
    """Whose stream it is."""
    position: str = LAST
    """The rule that chose the tokens; see `positions`."""
    site: str = AFTER
    """Where in the block: `before`, `middle` or `after`; see `sites`."""
    offsets: tuple[int, ...] | None = None
    """[prompt + 1]; None when every prompt has one vector."""

    def __post_init__(self) -> None:
        prompts, vectors = len(self.prompts), len(self.prompts)
        if self.offsets is not None:
            prompts, vectors = len(self.offsets) - 1, self.offsets[-1]
            if self.offsets[0] != 0 or any(end < start for start, end in pairwise(self.offsets)):
                raise DefectionError("offsets of residuals begin with 0 and never fall")
        if len(set(self.layers)) != len(self.layers):
            raise DefectionError(f"residuals hold layers {', '.join(map(str, self.layers))}: one of them twice")
        fits = self.values.ndim == 3 and self.values.shape[:2] == (vectors, len(self.layers))
        if prompts != len(self.prompts) or not fits:
            raise DefectionError(
                f"residuals of shape {tuple(self.values.shape)} do not fit {len(self.prompts)} prompts"
                + (f" with {vectors} vectors" if self.offsets is not None else "")
                + f" and {len(self.layers)} layers"
            )

    def __repr__(self) -> str:
        shape, kind = "×".join(map(str, self.values.shape)), str(self.values.dtype).removeprefix("torch.")
        several = f" of {len(self)} prompts" if self.offsets is not None else ""
        return f"<Residuals {shape} (vector, layer, d_model){several}, {kind}, of {self.model.name!r}, {self.position}>"

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Residuals:
        """The same residuals on another device, or in another dtype.

        Args:
            device: As PyTorch names it; None: where they are.
            dtype: None: the one they have.
        """
        return replace(self, values=self.values.to(device=device, dtype=dtype))

    def numpy(self) -> NDArray[np.float32]:
        """The vectors [vector, layer, d_model] as NumPy has them: fp32, also of bf16, which NumPy does not know."""
        return np.asarray(self.values.detach().float().cpu().numpy())

    def save(self, path: str | Path) -> None:
        """One safetensors file with the vectors and, in its header, all that is known of them; see `load_residuals`.

        Args:
            path: Of the file; folders on the way are made.

        Raises:
            DefectionError: When the file cannot be written, or two prompts have one id.
        """
        ids = [prompt.id for prompt in self.prompts]
        if repeated := [one for one, count in Counter(ids).items() if count > 1]:
            raise DefectionError(f"prompt id {repeated[0]!r} stands for several prompts; give them ids of their own")
        header = {
            "schema_version": RESIDUALS_SCHEMA,
            "layers": list(self.layers),
            "prompts": jsonl({"id": prompt.id, **prompt.to_json()} for prompt in self.prompts),
            "n_tokens": list(self.n_tokens),
            "model": self.model.to_json(),
            "position": self.position,
            "site": self.site,
            "offsets": None if self.offsets is None else list(self.offsets),
        }
        write_tensors(Path(path), {"residuals": self.values}, {RESIDUALS_HEADER: json.dumps(header)})

    @property
    def ids(self) -> tuple[str, ...]:
        """The prompts' ids, in row order."""
        return tuple(prompt.id for prompt in self.prompts)

    def of(self, row: int) -> Float[Tensor, "vector layer d_model"]:
        """The vectors of one prompt: one, or as many as were read of it.

        Args:
            row: Its number, counted from 0; from the end where it is negative.
        """
        row = range(len(self))[row]
        start, end = (row, row + 1) if self.offsets is None else self.offsets[row : row + 2]
        return self.values[start:end]

    def select(self, rows: Sequence[int]) -> Residuals:
        """Some of the prompts, in the order given.

        Args:
            rows: Their numbers, counted from 0.
        """
        picked = list(rows)
        vectors, offsets = picked, None
        if self.offsets is not None:
            spans = [range(self.offsets[row], self.offsets[row + 1]) for row in (range(len(self))[i] for i in picked)]
            vectors = [vector for span in spans for vector in span]
            offsets = offsets_of([len(span) for span in spans])
        return replace(
            self,
            values=self.values[vectors],
            prompts=tuple(self.prompts[row] for row in picked),
            n_tokens=tuple(self.n_tokens[row] for row in picked),
            offsets=offsets,
        )

    def of_prompts(self, prompts: Sequence[Prompt]) -> Residuals:
        """Those of some prompts, found by their ids; they stand under the prompts that are given.

        Args:
            prompts: Each of an id that was read. Sets that share texts can so be read together, each text once.

        Raises:
            DefectionError: Naming the first that was not read.
        """
        rows = {name: row for row, name in enumerate(self.ids)}
        if missing := next((prompt.id for prompt in prompts if prompt.id not in rows), None):
            raise DefectionError(f"prompt {missing!r} is not among the {len(self)} that were read")
        for prompt in prompts:
            if self.prompts[rows[prompt.id]].messages != prompt.messages:
                raise DefectionError(f"prompt {prompt.id!r} said something else when it was read")
        return replace(self.select([rows[prompt.id] for prompt in prompts]), prompts=tuple(prompts))

    def at(self, layer: int) -> Float[Tensor, "vector d_model"]:
        """The vectors of one layer.

        Args:
            layer: Its number in the model.

        Raises:
            DefectionError: For a layer that was not captured.
        """
        if layer not in self.layers:
            raise DefectionError(f"layer {layer} was not captured; these residuals hold {_spell(self.layers)}")
        return self.values[:, self.layers.index(layer)]

    def at_layers(self, layers: Sequence[int]) -> Residuals:
        """The same vectors at some of the layers, in that order.

        Args:
            layers: Their numbers in the model.

        Raises:
            DefectionError: For one that was not captured.
        """
        wanted = tuple(layers)
        if missing := [layer for layer in wanted if layer not in self.layers]:
            raise DefectionError(f"layer {missing[0]} was not captured; these residuals hold {_spell(self.layers)}")
        columns = [self.layers.index(layer) for layer in wanted]
        return self if wanted == self.layers else replace(self, values=self.values[:, columns], layers=wanted)


def load_residuals(path: str | Path) -> Residuals:
    """Residuals as `Residuals.save` wrote them.

    Args:
        path: The safetensors file.

    Raises:
        DefectionError: For a file that is missing, damaged or another.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from defection.activations import ModelIdentity, Prompt, Residuals, user_prompt
        >>> read = Residuals(torch.zeros(1, 1, 4), (7,), (user_prompt("Hi"),), (3,), ModelIdentity("mine", "f", "t"))
        >>> read.save(path := Path(mkdtemp()) / "read.safetensors")
        >>> load_residuals(path)
        <Residuals 1×1×4 (vector, layer, d_model), float32, of 'mine', last>
    """
    path, what = Path(path), "file of residuals"
    header, tensors = read_headed(path, RESIDUALS_HEADER, ResidualsHeader, RESIDUALS_SCHEMA, what)
    with understood(path, what):
        prompts = tuple(parse_prompts(header["prompts"], str(path)))
        if len(header["n_tokens"]) != len(prompts):
            raise DefectionError(f"it counts the tokens of {len(header['n_tokens'])} prompts and holds {len(prompts)}")
        return Residuals(
            tensors["residuals"],
            header["layers"],
            prompts,
            header["n_tokens"],
            ModelIdentity.from_json(header["model"]),
            header["position"],
            header["site"],
            header["offsets"],
        )


def joined_residuals(parts: Sequence[Residuals]) -> Residuals:
    """Prompts of several reads as one; DefectionError where these differ in model, layers, position or site."""
    first = parts[0]
    for part in parts[1:]:
        same = (part.model, part.layers, part.position, part.site, part.offsets)
        if same != (first.model, first.layers, first.position, first.site, None):
            raise DefectionError("residuals of another model, or read otherwise, cannot be put together")
    return replace(
        first,
        values=torch.cat([part.values.to(first.values) for part in parts]),
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        n_tokens=tuple(count for part in parts for count in part.n_tokens),
    )


def offsets_of(counts: Sequence[int]) -> tuple[int, ...]:
    """Where each prompt's vectors start, given how many it has; one entry more for where the last one's end."""
    return tuple(accumulate(counts, initial=0))


def _spell(layers: Sequence[int]) -> str:
    contiguous = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if contiguous else f"layers {', '.join(map(str, layers))}"
