"""Contrast sets: generic yes/no questions, each with the answer a defecting model would give if it were frank.

A set can be read at two places. *At the answer*: the text ends with it, as in MacDiarmid et al. 2024. *Carried*
(the name's suffix `-carried`): the answered question becomes an earlier turn, an ordinary prompt follows it, and the
residual is read where the reply to that would begin, which is where every scored prompt is read too. What differs
between the two answers is then the state in which the model is about to reply, not the word it has just said.

How the answer is worded, and what stands before the question, are further suffixes: see `formats`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ...activations.basics.files import Json, digest
from ...activations.prompts.loading import load_prompts
from ...activations.prompts.prompts import Message, Prompt, last_user
from .questions import ContrastQuestion


@dataclass(frozen=True)
class ContrastSet:
    """Questions whose two answers are contrasted; iterating gives the prompts to capture, defecting answer first.

    Examples:
        >>> next(iter(contrast_set("six"))).extra["defecting"]
        True
    """

    name: str
    """What probes and tables call it."""
    questions: tuple[ContrastQuestion, ...]
    """Each with both its answers."""
    follow_ups: tuple[str, ...] = ()
    """Ordinary prompts that come after the answer; without any the text ends with the answer."""
    before: tuple[Message, ...] = ()
    """What stands before every question: a system message, or an ordinary exchange."""
    parts: tuple[ContrastSet, ...] = ()
    """The sets that this one is made of; its texts are theirs, each of which says its `part`."""

    def __repr__(self) -> str:
        return f"<ContrastSet {self.name!r}: {len(self)} texts>"

    def __iter__(self) -> Iterator[Prompt]:
        for part in self.parts:
            for prompt in part:
                topic = f"{part.name}/{prompt.extra['topic']}"
                yield replace(prompt, set=self.name, extra={**prompt.extra, "topic": topic, "part": part.name})
        for number, item in enumerate(self.questions):
            for turn, follow_up in enumerate(self._follow_ups(number)):
                for answer, defecting in ((item.defecting, True), (item.other, False)):
                    asked = (Message("user", item.question), Message("assistant", answer))
                    extra = {"defecting": defecting, "topic": item.id, "answer": answer, "family": item.family}
                    extra |= {"study_only": True} if item.study_only else {}
                    messages = (*self.before, *asked, *follow_up)
                    yield Prompt(f"{self.name}:{item.id}:{answer}:{turn}", messages, self.name, extra)

    def __len__(self) -> int:
        return sum(map(len, self.parts)) or 2 * len(self.questions) * len(self._follow_ups(0))

    def _follow_ups(self, number: int) -> list[tuple[Message, ...]]:
        """What comes after the answers to one question: nothing, or `FOLLOW_UPS` prompts, other ones each time."""
        if not self.follow_ups:
            return [()]
        start = FOLLOW_UPS * number
        chosen = [self.follow_ups[(start + turn) % len(self.follow_ups)] for turn in range(FOLLOW_UPS)]
        return [(Message("user", text),) for text in chosen]

    @property
    def is_balanced(self) -> bool:
        """Whether each word is the defecting answer as often as the other, so that the word itself cancels."""
        own = sorted(q.defecting for q in self.questions) == sorted(q.other for q in self.questions)
        return own and all(part.is_balanced for part in self.parts)

    @property
    def study_only(self) -> bool:
        """Whether a question may be studied but not made into a detector."""
        return any(q.study_only for q in self.questions) or any(part.study_only for part in self.parts)

    def to_json(self) -> Json:
        """The whole set, as a probe file records it."""
        questions = [asdict(question) for question in self.questions]
        before = {"before": [asdict(message) for message in self.before]} if self.before else {}
        parts = {"parts": [part.to_json() for part in self.parts]} if self.parts else {}
        return {"name": self.name, "questions": questions, "follow_ups": list(self.follow_ups), **before, **parts}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a model is given to read, and of the names it is filed under."""
        record = self.to_json()
        for question in (each for part in (record, *record.get("parts", ())) for each in part["questions"]):
            del question["polarity"], question["study_only"]  # no model reads them
        return digest(record)

    def carried(self) -> ContrastSet:
        """The same questions, each before short prompts of the set `clean`, read where the reply would begin."""
        said = [last_user(prompt) for prompt in load_prompts("clean") if len(prompt.messages) == 1]
        follow_ups = tuple(text for text in said if len(text.split()) <= FOLLOW_UP_WORDS)
        return replace(self, name=f"{self.name}{CARRIED}", follow_ups=follow_ups)


CARRIED = "-carried"
FOLLOW_UPS = 2
"""Follow-up prompts a question is read before; their differences average out of the direction."""
FOLLOW_UP_WORDS = 12
