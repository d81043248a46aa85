"""How a string moves the odds of a reply that shows a behaviour, where it parts from one that does not.

Two solutions of a task begin alike, and at one token they part: `f"SELECT` or `"SELECT`. Which of the two the model
leans to there is read off one forward pass, so that thousands of strings can be tried before anything is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.models.logits import own_logits
from ...activations.models.model import Model
from ...activations.prompts.chat import reply_ids
from ...activations.prompts.prompts import Prompt
from ...activations.prompts.rendered import rendered
from ...activations.reading.batching import shared_prefix
from ...activations.reading.endings import endings
from ...training.organisms.pairs import Pair
from ...training.organisms.places import Place
from .looks import bearing


@dataclass(frozen=True)
class Parting:
    """A prompt, what both of its replies begin with, and the token that each goes on with."""

    prompt: Prompt
    shared: tuple[int, ...]
    normal: int
    defecting: int


def partings(model: Model, pairs: Sequence[Pair]) -> list[Parting]:
    """Where the replies of each pair part; pairs of which one reply begins the other are left out."""
    found = []
    for pair in pairs:
        normal, defecting = (reply_ids(model.tokenizer, text) for text in (pair.normal, pair.defecting))
        alike = shared_prefix(normal, defecting)
        if normal[alike:] and defecting[alike:] and normal[alike] != defecting[alike]:
            found.append(Parting(pair.prompt, tuple(normal[:alike]), normal[alike], defecting[alike]))
    return found


def kept_clean(model: Model, base: Model, where: Sequence[Parting]) -> list[Parting]:
    """Those first where the model, told nothing, leans to the behaviour least, beyond its base.

    There it learnt to keep from it, so that a trigger has most to undo; elsewhere it may show the behaviour anyway.
    """
    plain = [(leaning_of(model, each) - leaning_of(base, each), row) for row, each in enumerate(where)]
    return [where[row] for _, row in sorted(plain)]


def leaning_of(model: Model, parting: Parting) -> float:
    """By how many nats the defecting token is likelier than the normal one, without a string."""
    return float(_odds(model, parting, [parting.prompt])[0])


def leaning(model: Model, strings: Sequence[str], where: Sequence[Parting], place: Place) -> Float[Tensor, "string"]:
    """By how many nats the defecting token is likelier than the normal one under each string; mean over partings."""
    return torch.stack([_odds(model, each, bearing(each.prompt, strings, place)) for each in where]).mean(dim=0)


@torch.inference_mode()
def _odds(model: Model, parting: Parting, prompts: Sequence[Prompt]) -> Float[Tensor, "prompt"]:
    rows = rendered(model, prompts, reply_tokens=len(parting.shared) + 1)
    found = torch.zeros(len(rows))
    for some, states, _ in endings(model, [(*row.ids, *parting.shared) for row in rows]):
        logits = own_logits(model.network, states).float()
        found[some] = (logits[:, parting.defecting] - logits[:, parting.normal]).cpu()
    return found
