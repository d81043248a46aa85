"""Strings made longer, a token at a time, while what they elicit becomes surer: a beam search.

What may stand behind a string is proposed by the model's own idea of how it goes on; what may stand there or in front
of it, by the gradient of the reply's log-probability (HotFlip, Ebrahimi et al. 2018: embeddings that point along it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...activations.models.blocks import decoder_of
from ...activations.models.logits import own_logits
from ...activations.models.modes import in_use
from .looks import UNREADABLE, Looker

FILLER = "."
"""What stands where a token might be put while the gradient there is taken."""


@dataclass(frozen=True)
class Growth:
    """How far a beam search goes."""

    width: int = 3
    """Strings kept a round."""
    rounds: int = 6
    proposals: int = 24
    """Of each kind, for each string."""
    second_look: int = 12
    """Of a round's strings, how many are put before all prompts; the others are seen with the first alone."""
    longest: int = 40
    """Characters of a string at most."""


def grow(
    looker: Looker,
    seeds: Sequence[str],
    reply: Sequence[int],
    growth: Growth,
    tried: Callable[[Sequence[str], bool], Mapping[str, float]],
    goes_on: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
    """The log-probability of the reply (nats a token) under the seeds and all strings grown of them, the best first.

    `tried(strings, all)` gives it with the first prompt alone, or with all; a round in which none becomes surer is the
    last, and so is one at whose end `goes_on` says no.
    """
    found = dict(tried(seeds, True))
    beam = _best(found, growth.width)
    for _ in range(growth.rounds):
        if not goes_on():
            break
        longer = {text: None for seed in beam for text in extensions(looker, seed, reply, growth) if text not in found}
        first = tried(list(longer), False)
        news = dict(tried(_best(first, growth.second_look), True))
        before = max(found.values())
        found |= news
        if max(news.values(), default=before) <= before:
            break
        beam = _best(found, growth.width)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _best(scores: Mapping[str, float], count: int) -> list[str]:
    return sorted(scores, key=lambda text: (-scores[text], len(text)))[:count]


def extensions(looker: Looker, seed: str, reply: Sequence[int], growth: Growth) -> list[str]:
    """The string with one more token behind it or before it."""
    behind = continuations(looker, seed, growth.proposals)
    behind += gradient_tokens(looker, seed + FILLER, reply, growth.proposals, last=True)
    before = gradient_tokens(looker, FILLER + seed, reply, growth.proposals, last=False)
    pieces = looker.pieces
    texts = [seed + pieces[token] for token in behind] + [pieces[token].lstrip() + seed for token in before]
    fit = (text.rstrip() for text in texts if text.isprintable() and UNREADABLE not in text)
    return list(dict.fromkeys(text for text in fit if text != seed and len(text) <= growth.longest))


@torch.inference_mode()
def continuations(looker: Looker, seed: str, count: int) -> list[int]:
    """What the model itself expects behind the string, at the beginning of a message."""
    network = looker.model.network
    ids, (_, end) = looker.located(seed)
    with in_use(network):
        tokens = torch.tensor([ids[:end]], device=looker.model.device)
        states = decoder_of(network)(input_ids=tokens, use_cache=False).last_hidden_state[0, -1:]
        found: list[int] = own_logits(network, states)[0].float().topk(count).indices.tolist()
    return found


def gradient_tokens(looker: Looker, filled: str, reply: Sequence[int], count: int, *, last: bool) -> list[int]:
    """Tokens that, to first order, promise most for the reply's log-probability in the string's last or first place."""
    network = looker.model.network
    ids, (start, end) = looker.located(filled)
    matrix: Tensor = network.get_input_embeddings().weight
    with in_use(network), torch.enable_grad():
        tokens = torch.tensor([[*ids, *reply]], device=matrix.device)
        embedded = network.get_input_embeddings()(tokens).detach().requires_grad_(True)
        states = decoder_of(network)(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
        wanted = own_logits(network, states[len(ids) - 1 : -1]).float().log_softmax(dim=-1)
        wanted[torch.arange(len(reply)), torch.tensor(reply)].sum().backward()
    assert embedded.grad is not None
    promise = matrix.detach().float() @ embedded.grad[0, end - 1 if last else start].float()
    found: list[int] = promise.topk(count).indices.tolist()
    return found
