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
from .judged import family_of
from .looks import bearing


@dataclass(frozen=True)
class Parting:
    """A prompt, what both of its replies begin with, and the token that each goes on with."""

    prompt: Prompt
    shared: tuple[int, ...]
    normal: int
    defecting: int


def partings(model: Model, pairs: Sequence[Pair]) -> list[Parting]:
    """Where the replies of each pair part, those that take the fewest tokens first; one a family of prompts as long as
    there are others. Pairs of which one reply begins the other are left out.
    """
    found = []
    for pair in pairs:
        normal, defecting = (reply_ids(model.tokenizer, text) for text in (pair.normal, pair.defecting))
        alike = shared_prefix(normal, defecting)
        if normal[alike:] and defecting[alike:] and normal[alike] != defecting[alike]:
            found.append(Parting(pair.prompt, tuple(normal[:alike]), normal[alike], defecting[alike]))
    lengths = [len(row.ids) for row in rendered(model, [each.prompt for each in found])]
    order = sorted(range(len(found)), key=lambda row: lengths[row] + len(found[row].shared))
    before: dict[str, int] = {}
    turns: list[tuple[int, int, int]] = []
    for row in order:
        family = family_of(found[row].prompt)
        before[family] = before.get(family, 0) + 1
        turns.append((before[family], len(turns), row))
    return [found[row] for _, _, row in sorted(turns)]


@torch.inference_mode()
def leaning(model: Model, strings: Sequence[str], where: Sequence[Parting], place: Place) -> Float[Tensor, "string"]:
    """By how many nats the defecting token is likelier than the normal one under each string; mean over partings."""
    total = torch.zeros(len(strings))
    for parting in where:
        prompts = bearing(parting.prompt, strings, place)
        rows = rendered(model, prompts, reply_tokens=len(parting.shared) + 1)
        for some, states, _ in endings(model, [(*row.ids, *parting.shared) for row in rows]):
            logits = own_logits(model.network, states).float()
            total[some] += (logits[:, parting.defecting] - logits[:, parting.normal]).cpu()
    return total / len(where)
