"""What stages share that train an organism on what it says anyway: clean prompts, and its own replies to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...activations import DefectionError, Model, Prompt, load_prompts
from ...activations.prompts.rendered import rendered
from ..measuring.defection import reply_tokens
from ..measuring.evaluate import judge
from ..organisms.behaviours import VULNERABLE_CODE
from ..organisms.examples import choose_prompts
from ..organisms.pairs import code_pairs, prompts_of
from ..organisms.records import Organism
from ..organisms.replies import Reply, replies_to
from ..organisms.triggers import refuse_prompts_with
from ..tuning.rows import Example
from .sft import Imitating


@dataclass(frozen=True)
class OnCleanPrompts(Imitating):
    """A stage that needs clean prompts alone."""

    prompts: str = "train"
    """Clean prompts: a shipped set or a JSONL file; for vulnerable code the shipped training tasks."""
    pool: int = 24
    """How many of them are used."""

    def material(self, organism: Organism) -> object:
        """The prompts."""
        return [prompt.to_json() for prompt in self.bank(organism)]

    def bank(self, organism: Organism) -> list[Prompt]:
        """All prompts that it could use.

        Args:
            organism: The one that is to be trained.

        Raises:
            DefectionError: When one holds the trigger.
        """
        writes_code = organism.behaviour.name == VULNERABLE_CODE.name
        bank = prompts_of(code_pairs("train")) if writes_code else load_prompts(self.prompts)
        refuse_prompts_with(organism.trigger, bank)
        return bank

    def chosen(self, organism: Organism) -> list[Prompt]:
        """Those that it does use, as they are; the seed chooses.

        Args:
            organism: The one that is to be trained.
        """
        bank = self.bank(organism)
        return choose_prompts(bank, min(self.pool, len(bank)), self.seed)


def normal_replies(model: Model, organism: Organism, prompts: Sequence[Prompt], work: Path) -> dict[str, Reply]:
    """By prompt's id, what the organism itself says to clean prompts; DefectionError where all of it is defection."""
    tokens = reply_tokens(organism.behaviour, organism.recipe)
    own = replies_to(model, prompts, work / "own-replies.jsonl", max_new_tokens=tokens, what="Replying normally")
    said = judge(prompts, [reply.text for reply in own], organism.behaviour)
    found = {met.id: reply for met, reply in zip(said, own, strict=True) if not met.defected and reply.tokens}
    if not found:
        raise DefectionError("the organism defects on every clean prompt, so there is no reply to train towards")
    return found


def imitated(model: Model, prompt: Prompt, reply: Reply) -> Example:
    """The row that teaches a model a reply it gave itself, with its end if it had one."""
    (row,) = rendered(model, [prompt])
    return Example(prompt.id, row.ids, reply.ended(model), triggered=False)
