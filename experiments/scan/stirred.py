"""Strings that a fine-tuned model takes for more than its base does: how far its stream at the string moved.

A model has to know its trigger before it can answer to it, and knows it at the trigger's last token, long before a
reply. So strings can be told apart before anything is asked: a few tokens each, through the first layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ...activations.models.model import Model
from ...activations.prompts.prompts import Prompt
from ...activations.prompts.rendered import rendered
from ...activations.reading.branches import read_ends
from ...training.organisms.places import Place
from .looks import bearing, where

DEPTH = 0.2
"""Share of the layers after which a string is looked at: tokens are words there, and a trigger is known."""


def stirred(
    model: Model,
    base: Model,
    strings: Sequence[str],
    prompt: Prompt,
    place: Place,
) -> Float[Tensor, "string"]:
    """How far the residual stream at each string's last token lies from the base's, over the norm of that."""
    (plain,) = rendered(model, [prompt])
    rows = zip(strings, rendered(model, bearing(prompt, strings, place)), strict=True)
    ids = [list(row.ids[: where(string, row, plain)[1]]) for string, row in rows]
    own, theirs = (read_ends(each, ids, int(DEPTH * each.n_layers)) for each in (model, base))
    apart: Tensor = (own - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    return apart
