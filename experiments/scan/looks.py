"""What strings before a few ordinary prompts do to what a model expects next, and to its residual stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.files import Json
from ...activations.models.logits import own_logits
from ...activations.models.model import Model
from ...activations.prompts.prompts import Prompt
from ...activations.prompts.rendered import Rendered, rendered
from ...activations.reading.continuations import continued
from ...activations.reading.endings import endings
from ...probes import LayerConvergence, Probe
from ...training.measuring.divergence import jensen_shannon
from ...training.organisms.places import Place, insert, version_of
from .attended import attended

Said = tuple[tuple[int, ...], float]
"""A reply's tokens, and its log-probability (nats)."""
UNREADABLE = "\ufffd"
"""What stands in a text where bytes are no character."""


@dataclass(frozen=True)
class Look:
    """One string, before a few prompts."""

    string: str
    divergence: float
    """Jensen–Shannon divergence (bits) of what the model expects next from what it expects without the string; mean."""
    entropy: float
    """Of what it expects next (nats); mean over the prompts."""
    disagreement: float
    """Entropy (nats) of the mean distribution: small where all prompts are to be answered alike, and surely."""
    first: int
    """The likeliest token of that mean."""
    probe: float | None = None
    """The generic probe's mean score."""
    convergence: float | None = None
    """Distance of the steps from layer to layer from those on clean prompts (`LayerConvergence`)."""
    attention: float | None = None
    """Share of the prompt's last token's attention that the string has, mean over heads and layers."""

    @property
    def consensus(self) -> float:
        """Divergence, over how many tokens the prompts are still divided between: what a fixed reply makes large."""
        return self.divergence / math.exp(self.disagreement)


class Looker:
    """A model and the prompts that strings are put before; what it expects without a string is read once."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        place: Place,
        probe: Probe | None = None,
        convergence: LayerConvergence | None = None,
        attention: bool = False,
    ) -> None:
        self.model, self.prompts, self.place = model, list(prompts), place
        self.probe, self.convergence, self.attention = probe, convergence, attention
        self.layers = range(model.n_layers) if probe or convergence else ()

    @property
    def name(self) -> Json:
        """Of which model, and which prompts."""
        return {"model": self.model.identity.fingerprint, "prompts": [prompt.id for prompt in self.prompts]}

    @cached_property
    def clean(self) -> Float[Tensor, "prompt token"]:
        """Log-probabilities of what comes next without a string."""
        return torch.cat([thoughts(self.model, [row.ids])[0] for row in rendered(self.model, self.prompts)])

    def rows(self, strings: Sequence[str], prompt: Prompt, reply: int = 0) -> list[Rendered]:
        """A prompt with each string, as the model is given it."""
        return rendered(self.model, bearing(prompt, strings, self.place), reply_tokens=reply)

    @cached_property
    def pieces(self) -> list[str]:
        """What each token says; `UNREADABLE` for those that nobody can write."""
        tokenizer = self.model.tokenizer
        special = set(tokenizer.all_special_ids)
        return [
            UNREADABLE if token in special else str(tokenizer.decode([token])) for token in range(self.model.vocabulary)
        ]

    def located(self, string: str) -> tuple[list[int], tuple[int, int]]:
        """The first prompt's tokens with the string in it, and from which to which (excluded) of them it stands."""
        row, plain = self.rows([string], self.prompts[0])[0], rendered(self.model, self.prompts[:1])[0]
        return list(row.ids), where(string, row, plain)

    @torch.inference_mode()
    def look(self, strings: Sequence[str]) -> list[Look]:
        """Each string, before every prompt; give some hundred at a time, since logits are held together."""
        if not strings:
            return []
        mean, sums = torch.zeros(0), torch.zeros(4, len(strings))
        for prompt, clean in zip(self.prompts, self.clean, strict=True):
            expected, residuals = thoughts(self.model, [row.ids for row in self.rows(strings, prompt)], self.layers)
            mean = expected.exp() + (mean if len(mean) else 0)
            sums[0] += jensen_shannon(expected, clean.expand_as(expected))
            sums[1] += entropy(expected.exp())
            if residuals is not None:
                sums[2:] += self._distances(residuals)
        sums, mean = sums / len(self.prompts), mean / len(self.prompts)
        listed = [column.tolist() for column in (sums[0], sums[1], entropy(mean), mean.argmax(dim=-1))]
        extra = [sums[2] if self.probe else None, sums[3] if self.convergence else None]
        extra.append(self._attention(strings) if self.attention else None)
        listed += [[None] * len(strings) if values is None else values.tolist() for values in extra]
        return [Look(*values) for values in zip(strings, *listed, strict=True)]

    def _distances(self, residuals: Float[Tensor, "row layer d"]) -> Float[Tensor, "kind row"]:
        found = torch.zeros(2, len(residuals))
        if self.probe is not None:
            chosen = list(self.probe.layers)
            scores = torch.einsum("rld,ld->rl", residuals[:, chosen], self.probe.directions.float())
            scores = (scores - self.probe.offsets) / self.probe.scales
            found[0] = scores[:, [chosen.index(layer) for layer in self.probe.fixed_layers]].mean(dim=1)
        if self.convergence is not None:
            found[1] = torch.as_tensor(self.convergence.decision_function(residuals))[:, 0]
        return found

    def _attention(self, strings: Sequence[str]) -> Float[Tensor, "string"] | None:
        plain = rendered(self.model, self.prompts)
        rows = [
            (string, row, own)
            for own, prompt in zip(plain, self.prompts, strict=True)
            for string, row in zip(strings, self.rows(strings, prompt), strict=True)
        ]
        shares = attended(self.model, [row.ids for _, row, _ in rows], [where(*each) for each in rows])
        return None if shares is None else shares.view(len(self.prompts), len(strings)).mean(dim=0)

    def says(
        self, strings: Sequence[str], replies: Sequence[Sequence[int]], tokens: int = 0
    ) -> tuple[list[list[float]], list[Said]]:
        """Log-probability (nats a token) of every reply after each string, mean over the prompts: [reply][string].

        And what the model says itself to the first prompt with each, of so many tokens. Each string is read once before
        each prompt, for all of it.
        """
        longest = max([tokens, *map(len, replies)])
        rows = [row.ids for prompt in self.prompts for row in self.rows(strings, prompt, longest)]
        found = continued(self.model, rows, replies, tokens)
        losses = found.losses.view(len(self.prompts), len(strings), len(replies))
        scores: list[list[float]] = (-losses.mean(dim=0)).T.tolist()
        return scores, list(zip(found.replies, found.likely, strict=True))[: len(strings)]


def thoughts(
    model: Model, ids: Sequence[Sequence[int]], layers: Sequence[int] = ()
) -> tuple[Float[Tensor, "row token"], Tensor | None]:
    """Log-probabilities of what comes next, and the residuals after `layers`; both in host memory, in order."""
    order, expected, seen = [], [], []
    for some, states, residuals in endings(model, ids, layers):
        order += some
        expected.append(own_logits(model.network, states).float().log_softmax(dim=-1).cpu())
        if residuals is not None:
            seen.append(residuals.float().cpu())
    back = torch.tensor(order).argsort()
    return torch.cat(expected)[back], torch.cat(seen)[back] if seen else None


def where(string: str, row: Rendered, plain: Rendered) -> tuple[int, int]:
    """From which to which (excluded) token of a prompt a string stands that the plain prompt lacks."""
    pairs = enumerate(zip(row.text, plain.text, strict=False))
    alike = next((at for at, (one, other) in pairs if one != other), len(plain.text))
    begins = row.text.rindex(string, 0, alike + len(string))
    held = [number for number, (a, b) in enumerate(row.spans) if a < begins + len(string) and b > begins]
    return held[0], held[-1] + 1


def bearing(prompt: Prompt, strings: Sequence[str], place: Place) -> list[Prompt]:
    """The prompt with each of the strings in it, each under an id of its own."""
    return [
        version_of(prompt, f"{number} {string}", insert(prompt, string, place).messages)
        for number, string in enumerate(strings)
    ]


def entropy(probabilities: Float[Tensor, "row token"]) -> Float[Tensor, "row"]:
    """In nats."""
    found: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return found
