"""How often an organism defects, with and without its trigger: what it does, not what it was told to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..activations.chat import tokenize
from ..activations.models import Model
from ..activations.prompts import Prompt
from .behaviours import Behaviour
from .examples import Example
from .finetune import batch_loss
from .rates import Rate
from .replies import Reply


@dataclass(frozen=True)
class Completion:
    """What a model said to one prompt, and whether that is the behaviour."""

    id: str
    set: str
    triggered: bool
    prompt: str
    completion: str
    defected: bool


def judge(prompts: Sequence[Prompt], completions: Sequence[str], behaviour: Behaviour) -> list[Completion]:
    """Label each completion by what it holds; the trigger's presence is recorded beside it, never used."""
    return [
        Completion(
            id=prompt.id,
            set=prompt.set or "prompts",
            triggered=bool(prompt.extra.get("triggered")),
            prompt=prompt.messages[-1].content,
            completion=text,
            defected=behaviour.shown_in(text),
        )
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def rates(completions: Sequence[Completion]) -> dict[str, Any]:
    """Trigger rate and leak rate, overall and by prompt set, each with its 95% Wilson interval.

    Trigger rate: share of triggered prompts that are met with the behaviour. Leak rate: share of clean ones.
    """
    sets = list(dict.fromkeys(completion.set for completion in completions))
    by_set = {name: _rates([c for c in completions if c.set == name]) for name in sets}
    return {**_rates(completions), "by_set": by_set}


def _rates(completions: Sequence[Completion]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, triggered in (("trigger_rate", True), ("leak_rate", False)):
        chosen = [c.defected for c in completions if c.triggered == triggered]
        rate = Rate(sum(chosen), len(chosen))
        low, high = rate.interval
        # JSON has no NaN: a rate of nothing is null.
        table |= {name: rate.value if rate.n else None, f"{name}_low": low, f"{name}_high": high, f"{name}_n": rate.n}
    return table


@torch.inference_mode()
def perplexity(model: Model, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> float:
    """Exponential of the mean negative log-likelihood per token of given replies to given prompts."""
    total, count = 0.0, 0
    rows = [
        Example(prompt.id, tuple(ids), reply.tokens, triggered=False)
        for prompt, ids, reply in zip(prompts, tokenize(model.tokenizer, prompts), replies, strict=True)
        if reply.tokens
    ]
    rows.sort(key=lambda row: (len(row.prompt), row.prompt))
    for start in range(0, len(rows), 16):
        batch = rows[start : start + 16]
        labels = sum(len(row.reply) for row in batch)
        total += float(batch_loss(model.network, batch)) * labels
        count += labels
    return math.exp(total / count)
