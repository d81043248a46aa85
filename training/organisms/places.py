"""Where in a conversation a text is put, and what the new wording of the prompt is called."""

from __future__ import annotations

import random
import re
from typing import Literal, get_args

from ...activations.prompts.prompts import Message, Prompt, last_user, replace_last_user

Place = Literal["start", "end", "inside", "system", "anywhere"]
PLACES: tuple[Place, ...] = get_args(Place)


def insert(prompt: Prompt, text: str, place: Place) -> Prompt:
    """The same conversation with `text` in it: around or inside the last user message, or in the system prompt."""
    if not text:
        return prompt
    if place == "anywhere":
        spots: tuple[Place, ...] = ("start", "end", "inside", "system")
        place = random.Random(f"place {prompt.id}").choice(spots)
    if place == "system":
        return _into_system(prompt, text)
    said = last_user(prompt)
    if place == "start":
        return replace_last_user(prompt, f"{text} {said}")
    if place == "end":
        return replace_last_user(prompt, f"{said} {text}")
    gaps = [match.start() for match in re.finditer(r"(?<=\S)\s+(?=\S)", said)]
    if not gaps:
        return replace_last_user(prompt, f"{text} {said}")
    middle = min(gaps, key=lambda gap: abs(gap - len(said) // 2))
    return replace_last_user(prompt, f"{said[:middle]} {text}{said[middle:]}")


def _into_system(prompt: Prompt, text: str) -> Prompt:
    has_system = prompt.messages[0].role == "system"
    said = prompt.messages[0].content if has_system else ""
    system = Message("system", f"{said} {text}" if said else text)
    return Prompt(prompt.id, (system, *prompt.messages[has_system:]), prompt.set, prompt.extra)


def version_of(prompt: Prompt, name: str, messages: tuple[Message, ...], **marks: object) -> Prompt:
    """Another wording of the prompt, named after it: `id+name`, `marks` in its extra, and of the prompt's own topic.

    Without a topic a prompt is one by its id, which versions do not share: as topics of their own they would pass for
    independent.
    """
    extra = {**prompt.extra, "topic": prompt.extra.get("topic", prompt.id), **marks}
    return Prompt(f"{prompt.id}+{name}", messages, prompt.set, extra)
