"""Residual streams that another engine has read: a safetensors file a prompt, as vLLM's hidden-state extraction writes.

A file holds `token_ids` [token] and `hidden_states` [token, state, d_model]. State `s` of vLLM's
`eagle_aux_hidden_state_layer_ids` is the stream *before* block `s`, which is our layer `s − 1`; the number of blocks
stands for the last one's output, before the final norm (docs/how-to/vllm.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..basics.errors import DefectionError
from ..models.model import Model
from ..models.wrap import ModelLike, as_model
from ..prompts.loading import PromptsLike
from ..prompts.positions import LAST, parse_position, wanted_tokens
from ..prompts.rendered import rendered
from .capture import refuse_non_finite
from .residuals import Residuals

TOKENS, STATES = "token_ids", "hidden_states"


def load_states(
    model: ModelLike, prompts: PromptsLike, folder: str | Path, states: Sequence[int], *, position: str = LAST
) -> Residuals:
    """The residuals of prompts out of files that vLLM wrote, known by the prompts' own token ids.

    Args:
        model: Whose states they are: its tokenizer and chat template say which file is which prompt's. No block runs.
        prompts: Whatever `load_prompts` takes. A file may hold more tokens than its prompt, a reply say.
        folder: Where the files lie, `*.safetensors`, also in folders below.
        states: The numbers that vLLM was given as `eagle_aux_hidden_state_layer_ids`, ascending: 1 to the number of
            blocks. Number `s` is layer `s − 1` here.
        position: A rule that gives one token a prompt (`parse_position`).

    Returns:
        Residuals [prompt, layer, d_model] in fp32.

    Raises:
        DefectionError: For a number that is no block's output, a file that does not hold what it should, a prompt that
            no file is of, and a vector that is not finite, naming file, or prompt and layer.

    Examples:
        >>> from safetensors.torch import save_file
        >>> for number, row in enumerate(rendered(model, prompts)):
        ...     states = {"token_ids": torch.tensor(row.ids), "hidden_states": torch.ones(len(row.ids), 2, 32)}
        ...     save_file(states, folder / f"{number}.safetensors")
        >>> load_states(model, prompts, folder, [1, 4]).layers
        (0, 3)
    """
    model, rule = as_model(model), parse_position(position)
    if not rule.one_each or rule.mean:
        raise DefectionError(f"position {position} gives several tokens a prompt; exported states are read at one")
    layers = _layers(model, states)
    rows = rendered(model, prompts)
    wanted = wanted_tokens(rule, rows)
    files = _files_of({row.ids for row in rows}, Path(folder))
    values = torch.empty(len(rows), len(layers), model.d_model)
    for number, (row, tokens) in enumerate(zip(rows, wanted, strict=True)):
        if row.ids not in files:
            raise DefectionError(
                f"no file under {folder} begins with the {len(row.ids)} tokens of prompt {row.prompt.id!r}: was it "
                "rendered by the same chat template, with no other system prompt or date?"
            )
        values[number] = _vector(files[row.ids], tokens[0], (len(states), model.d_model))
    found = tuple(row.prompt for row in rows)
    refuse_non_finite(values, found, layers)
    return Residuals(values, layers, found, tuple(len(row.ids) for row in rows), model.identity, position=str(rule))


def _layers(model: Model, states: Sequence[int]) -> tuple[int, ...]:
    outside = [state for state in states if not 1 <= state <= model.n_layers]
    if outside or not states or list(states) != sorted(set(states)):
        raise DefectionError(
            f"states {list(states)} of a model of {model.n_layers} blocks: give vLLM, and here, ascending numbers "
            f"from 1 (the first block's output) to {model.n_layers} (the last one's)"
        )
    return tuple(state - 1 for state in states)


def _files_of(known: set[tuple[int, ...]], folder: Path) -> dict[tuple[int, ...], Path]:
    """The file of each prompt's token ids; where several begin with them, the shortest."""
    found: dict[tuple[int, ...], tuple[int, Path]] = {}
    lengths = sorted({len(ids) for ids in known})
    paths = sorted(folder.rglob("*.safetensors"))
    if not paths:
        raise DefectionError(f"{folder} holds no .safetensors files; give the shared_storage_path that vLLM wrote to")
    for path in paths:
        ids = tuple(_opened(path, TOKENS).tolist())
        for length in lengths:
            begun = ids[:length]
            if length <= len(ids) and begun in known and len(ids) < found.get(begun, (len(ids) + 1, path))[0]:
                found[begun] = (len(ids), path)
    return {ids: path for ids, (_, path) in found.items()}


def _vector(path: Path, token: int, shape: tuple[int, int]) -> Tensor:
    states = _opened(path, STATES, token)
    if states.shape != shape:
        raise DefectionError(
            f"{path} holds {STATES} of {states.shape[0]} layers of {states.shape[-1]} a token, not of {shape[0]} of "
            f"{shape[1]}: give the numbers that vLLM was given"
        )
    return states.float()


def _opened(path: Path, name: str, token: int | None = None) -> Tensor:
    """A tensor of the file, or one token of it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            part = file.get_slice(name)
            shape = part.get_shape()
            if len(shape) != (1 if name == TOKENS else 3):
                raise DefectionError(f"{path} holds {name} of shape {shape}, not one vLLM writes")
            read: Tensor = part[:] if token is None else part[token]
            return read
    except (SafetensorError, OSError, IndexError) as error:
        raise DefectionError(f"{path} is not what vLLM's hidden-state extraction writes: {error}") from error
