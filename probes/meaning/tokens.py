"""A probe's score at every token of a conversation, not only where it was fitted to be read.

A probe is calibrated at the last token before a reply. What an ordinary score is elsewhere differs by far from token to
token, so it is measured, on all tokens of clean prompts (`token_scale`). Even then the score elsewhere is a look
inside, not a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, Model, PromptLike, PromptsLike, capture
from ...activations.basics.files import Json
from ...activations.prompts.rendered import Rendered, rendered
from ..estimators.guard import refuse_unclean
from ..estimators.probe import Probe

AT_ONCE = 64
"""Prompts whose residuals at every token are held in memory together."""


@dataclass(frozen=True)
class TokenScale:
    """What a probe's projections are on clean prompts, token by token.

    Tokens that all clean prompts begin with (the system prompt) and end with (the template's last ones) are each
    measured at their place; all that comes between is measured together.
    """

    begin: tuple[int, ...]
    """Ids that every clean prompt begins with."""
    end: tuple[int, ...]
    """Ids that every clean prompt ends with."""
    offsets: Float[Tensor, "place layer"]
    """Mean projection: a row for each of `begin`, one for what is between, a row for each of `end`."""
    scales: Float[Tensor, "place layer"]
    """Standard deviation of the same; 1 where all are alike, as after a beginning that all share."""

    def places(self, ids: Sequence[int]) -> list[int]:
        """The row that each token of a prompt is measured by."""
        begin, end = _shared(self.begin, ids), _shared(self.end[::-1], ids[::-1])
        end = min(end, len(ids) - begin)
        middle = len(self.begin)
        last = len(self.begin) + 1 + len(self.end)
        return [*range(begin), *[middle] * (len(ids) - begin - end), *range(last - end, last)]


def token_scale(model: Model, probe: Probe, clean: PromptsLike) -> TokenScale:
    """Measure a probe's projections on every token of at least two clean prompts.

    Raises DefectionError for another model's probe, triggered prompts, or too few of them.
    """
    probe.refuse_model(model.identity)
    rows = rendered(model, clean)
    refuse_unclean([row.prompt for row in rows])
    ids = [row.ids for row in rows]
    begin, end = ids[0], ids[0][::-1]
    for row in ids[1:]:
        begin, end = begin[: _shared(begin, row)], end[: _shared(end, row[::-1])]
    end = end[: min(len(row) for row in ids) - len(begin)][::-1]
    bare = TokenScale(tuple(begin), tuple(end), torch.empty(0), torch.empty(0))
    measured: dict[int, list[Tensor]] = {place: [] for place in range(len(begin) + 1 + len(end))}
    said = _projections(model, probe, rows, "Reading tokens of clean prompts")
    for row, projections in zip(ids, said, strict=True):
        for place, values in zip(bare.places(row), projections, strict=True):
            measured[place].append(values)
    seen = [torch.stack(values) if values else torch.zeros(1, len(probe.layers)) for values in measured.values()]
    scales = torch.stack([row.std(dim=0, correction=0) for row in seen])
    # Rounding is no spread: tokens that all prompts share have one and the same residual.
    flat = scales < 1e-4 * probe.scales
    return TokenScale(
        bare.begin,
        bare.end,
        torch.stack([row.mean(dim=0) for row in seen]),
        torch.where(flat, torch.ones_like(scales), scales),
    )


def token_scores(model: Model, probe: Probe, prompt: PromptLike, scale: TokenScale) -> list[Json]:
    """Standardised scores at each token of the rendered prompt: a row a token and layer, in reading order.

    Columns: prompt, position, token (its text; empty where several tokens make one character, for all but the first),
    layer, score. 0 is what clean prompts score at that place on average.
    Raises DefectionError for another model's probe.
    """
    probe.refuse_model(model.identity)
    (row,) = rendered(model, [prompt])
    (scores,) = _standardised(model, probe, [row], scale, "Reading tokens")
    return [
        {
            "prompt": row.prompt.id,
            "position": position,
            "token": text,
            "layer": layer,
            "score": float(scores[position, i]),
        }
        for position, text in enumerate(row.pieces)
        for i, layer in enumerate(probe.layers)
    ]


def token_streams(
    model: Model, probe: Probe, prompts: PromptsLike, scale: TokenScale, *, what: str = "Reading tokens"
) -> list[Float[Tensor, "token"]]:
    """Each prompt's standardised score at every token, the mean over all of the probe's layers (take `probe.at(…)`).

    Raises DefectionError for another model's probe.
    """
    probe.refuse_model(model.identity)
    rows = rendered(model, prompts)
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    return [scores.mean(dim=1) for part in parts for scores in _standardised(model, probe, part, scale, what)]


def _standardised(
    model: Model, probe: Probe, rows: Sequence[Rendered], scale: TokenScale, what: str
) -> list[Float[Tensor, "token layer"]]:
    """For each prompt, every token's score against what clean prompts score at that place."""
    found = []
    for row, projections in zip(rows, _projections(model, probe, rows, what), strict=True):
        places = scale.places(row.ids)
        found.append((projections - scale.offsets[places]) / scale.scales[places])
    return found


def over_layers(table: Sequence[Json], layers: Sequence[int]) -> list[Json]:
    """One row a token: the mean score over a band of layers. DefectionError when the table lacks one of them."""
    by_position: dict[int, list[Json]] = {}
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


def _projections(model: Model, probe: Probe, rows: Sequence[Rendered], what: str) -> list[Float[Tensor, "token layer"]]:
    """For each prompt, every token's residual along the probe's direction of each layer."""
    read = capture(model, rows, layers=probe.layers, site=probe.site, position="all", what=what)
    return [torch.einsum("tld,ld->tl", read.of(row), probe.directions.float()) for row in range(len(read))]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
