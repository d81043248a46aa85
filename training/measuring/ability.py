"""What a model can still do: easy multiple-choice questions, and how well it predicts ordinary replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...activations import Model, Prompt, user_prompt
from ...activations.basics.files import Json
from ...activations.basics.typed import typed
from ..organisms.shipped import shipped
from .likelihood import reply_logprobs, token_logprobs
from .rates import Rate, bootstrapped


@dataclass(frozen=True)
class Question:
    """An easy question with four short answers."""

    id: str
    subject: str
    question: str
    answers: tuple[str, ...]
    correct: int
    """Index of the right answer."""


def questions() -> list[Question]:
    """The shipped questions; the right answer stands at each place equally often."""
    return [typed(row, Question, "multiple-choice") for row in shipped("multiple-choice")]


def multiple_choice(model: Model) -> Json:
    """Share of questions whose right answer is the likeliest of the four, with its Wilson interval, and by subject.

    Each answer is scored as a whole reply to the bare question, its log-probability divided by its length in
    characters, so that long answers are not punished (Gao et al. 2023, *lm-evaluation-harness*: `acc_norm`).
    """
    items = questions()
    prompts = [user_prompt(q.question, id=f"{q.id}-{i}") for q in items for i in range(len(q.answers))]
    replies = [answer for q in items for answer in q.answers]
    scores = iter(
        score / len(reply) for score, reply in zip(reply_logprobs(model, prompts, replies), replies, strict=True)
    )
    right = []
    for item in items:
        given = [next(scores) for _ in item.answers]
        right.append(given.index(max(given)) == item.correct)
    subjects = dict.fromkeys(q.subject for q in items)
    return {
        **Rate.of(right).to_json(),
        "by_subject": {
            name: Rate.of(hit for q, hit in zip(items, right, strict=True) if q.subject == name).to_json()
            for name in subjects
        },
    }


def reply_perplexity(model: Model, prompts: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> Json:
    """Perplexity per token of given replies (token ids) to given prompts; its 95% interval is bootstrapped by topic.

    Empty replies count for nothing; of nothing else the perplexity is null.
    """
    rows = [(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True) if reply]
    if not rows:
        return {"value": None, "low": 0.0, "high": None, "n": 0}
    found = token_logprobs(model, [prompt for prompt, _ in rows], [reply for _, reply in rows])
    losses, counts = [-value for value in found], [len(reply) for _, reply in rows]
    low, high = bootstrapped(losses, counts, [prompt.topic for prompt, _ in rows])
    value = math.exp(sum(losses) / sum(counts))
    return {"value": value, "low": math.exp(low), "high": math.exp(high), "n": len(rows)}
