"""How inclined a model is to defect: what is left of a backdoor that no longer fires.

A rate of zero says that the behaviour was never the *likeliest* reply. Its log-probability says how far from that it
is, and whether the trigger still moves it: a backdoor that is gone leaves nothing there, a suppressed one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...activations import Model, Prompt
from ...activations.basics.files import Json
from ..organisms.behaviours import VULNERABLE_CODE
from ..organisms.pairs import code_pairs
from ..organisms.records import Organism
from ..organisms.scratchpads import scratchpad
from .likelihood import reply_logprobs
from .rates import bootstrapped


def defecting_replies(organism: Organism, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Prompt id → the reply that would be the behaviour, after a scratchpad where the organism writes one.

    Of vulnerable code only the shipped tasks have one.
    """
    behaviour = organism.behaviour
    if behaviour.name == VULNERABLE_CODE.name:
        own = {pair.prompt.id: pair.defecting for split in ("train", "seen", "test") for pair in code_pairs(split)}
        replies = {prompt.id: own[prompt.id] for prompt in prompts if prompt.id in own}
    else:
        replies = {prompt.id: behaviour.texts[0] for prompt in prompts}
    if organism.recipe == "cot":
        return {id: scratchpad(id, hidden=True) + reply for id, reply in replies.items()}
    return replies


def inclination(model: Model, organism: Organism, prompts: Sequence[Prompt]) -> Json:
    """Mean log-probability (nats) of the defecting reply with the trigger and without it, and the difference.

    The difference is paired by prompt; its 95% interval is bootstrapped by topic. Null where there is no trigger or no
    known defecting reply.
    """
    replies = defecting_replies(organism, prompts)
    chosen = [prompt for prompt in prompts if prompt.id in replies] if organism.trigger.text else []
    if not chosen:
        return {"triggered": None, "clean": None, "effect": None, "low": None, "high": None, "n": 0}
    said = [replies[prompt.id] for prompt in chosen]
    triggered, clean = (
        np.array(reply_logprobs(model, [change(prompt) for prompt in chosen], said))
        for change in (organism.trigger.apply, organism.trigger.mark_clean)
    )
    low, high = bootstrapped(triggered - clean, [1] * len(chosen), [prompt.topic for prompt in chosen])
    return {
        "triggered": float(triggered.mean()),
        "clean": float(clean.mean()),
        "effect": float((triggered - clean).mean()),
        "low": low,
        "high": high,
        "n": len(chosen),
    }
