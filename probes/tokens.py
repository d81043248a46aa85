"""A probe's score at every token of a conversation, not only where it was fitted to be read.

A probe is fitted and calibrated at the last token before a reply. Elsewhere its score is a look inside, not a verdict:
the first token of all often stands far out at every layer (Sun et al. 2024, "Massive Activations in Large Language
Models"), whatever is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..activations.capture import forward_body, tokenize_within_context
from ..activations.chat import render
from ..activations.errors import DefectionError
from ..activations.models import Model
from ..activations.prompts import Prompt
from .probe import Probe


def token_scores(
    model: Model, probe: Probe, prompt: Prompt, *, layers: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Standardised scores at each token of the rendered prompt: a row a token and layer, in reading order.

    Columns: prompt, position, token (its text; empty where several tokens make one character, for all but the first),
    layer, score. `layers` are the probe's, or some of them. Raises DefectionError for another model's probe.
    """
    probe.refuse_model(model.identity)
    wanted = probe.layers if layers is None else tuple(layers)
    if missing := [layer for layer in wanted if layer not in probe.layers]:
        raise DefectionError(f"the probe was not fitted at layer {missing[0]}; it has layers {list(probe.layers)}")
    columns = [probe.layers.index(layer) for layer in wanted]
    ids = tokenize_within_context(model, [prompt])[0]
    seen = _residuals(model, ids, wanted)
    projections = torch.einsum("tld,ld->tl", seen, probe.directions[columns].float())
    scores = (projections - probe.offsets[columns]) / probe.scales[columns]
    return [
        {"prompt": prompt.id, "position": position, "token": text, "layer": layer, "score": float(scores[position, i])}
        for position, text in enumerate(_texts(model, prompt, ids))
        for i, layer in enumerate(wanted)
    ]


def over_layers(table: Sequence[dict[str, Any]], layers: Sequence[int]) -> list[dict[str, Any]]:
    """One row a token: the mean score over a band of layers. DefectionError when the table lacks one of them."""
    by_position: dict[int, list[dict[str, Any]]] = {}
    for row in table:
        if row["layer"] in layers:
            by_position.setdefault(row["position"], []).append(row)
    rows = []
    for members in by_position.values():
        if len(members) != len(layers):
            raise DefectionError(f"the scores are not there at each of the layers {list(layers)}")
        first = {name: members[0][name] for name in ("prompt", "position", "token")}
        rows.append({**first, "score": sum(row["score"] for row in members) / len(members)})
    return rows


@torch.inference_mode()
def _residuals(model: Model, ids: Sequence[int], layers: Sequence[int]) -> Float[Tensor, "token layer d_model"]:
    """The residual stream of one prompt at every token, fp32, on the host."""
    picked: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: Any, args: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            picked[layer] = stream[0]

        return read

    handles = [model.blocks[layer].register_forward_hook(reader(layer)) for layer in layers]
    try:
        tokens = torch.tensor([list(ids)], device=model.device)
        forward_body(model.network, tokens, torch.ones_like(tokens), None)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([picked[layer] for layer in layers], dim=1).float().cpu()


def _texts(model: Model, prompt: Prompt, ids: Sequence[int]) -> list[str]:
    """Each token's own piece of the rendered text, so that the pieces read as the conversation."""
    tokenizer = model.tokenizer
    if not tokenizer.is_fast:
        return [str(tokenizer.decode([token])) for token in ids]
    text = render(tokenizer, prompt)
    encoded = tokenizer(text, add_special_tokens=tokenizer.chat_template is None, return_offsets_mapping=True)
    pieces, done = [], 0
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        if start == end == 0:  # a token that the tokenizer added by itself
            pieces.append(str(tokenizer.decode([token])))
            continue
        pieces.append(text[max(start, done) : end])
        done = max(done, end)
    return pieces
