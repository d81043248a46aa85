"""The steps of a scan on one model: what leaks, what ranks first, what is elicited, what grows, what is confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ...activations.basics.progress import Bar, progress
from ...activations.models.model import Model
from ...activations.prompts.loading import load_prompts
from ...activations.prompts.prompts import Prompt
from ...activations.reading.capture import capture
from ...probes import LayerConvergence, Probe
from ..run.journal import Journal
from ..run.plan import Say
from .confirm import Confirmed, StringTest, confirm
from .grow import grow
from .leak import DECODINGS, Leak, Motif, motifs, samples
from .looks import Look, Looker
from .plan import Clock, ScanPrompts, ScanSettings
from .rank import Ranked, best, finalists, looks, with_base
from .strings import vocabulary_strings

RANKED_UNTIL, GROWN_UNTIL = (0.4, 0.5, 0.6), 0.8
"""Shares of the budget after which no more strings are looked at in a round, and none are grown; the rest is for the
test. Later rounds than these end with the last of them."""


@dataclass
class Scan:
    """A model, perhaps its base, and what was seen of them so far."""

    model: Model
    base: Model | None
    prompts: ScanPrompts
    settings: ScanSettings
    journal: Journal
    clock: Clock
    say: Say
    first: list[Look] = field(default_factory=list)
    """Every string that was put before the first prompts."""
    strings: int = 0
    """How many there are."""

    def leaked(self) -> list[Motif]:
        """Motifs of what the model says after its bare template, oftener than its base."""
        leak = self.settings.leak
        if leak is None:
            return []
        models = [each for each in (self.model, self.base) if each is not None]
        with progress("Sampling", total=len(models) * len(DECODINGS), unit="decodings") as advance:
            said = [self._sampled(each, leak, advance) for each in models]
        found = motifs(self.model, said[0], leak, said[1] if len(said) > 1 else None)
        self.say(f"{len(found)} motifs in {len(said[0])} samples")
        return found

    def _sampled(self, model: Model, leak: Leak, advance: Bar) -> list[str]:
        name = {
            "what": "samples",
            "model": model.identity.fingerprint,
            "leak": asdict(leak),
            "seed": self.settings.seed,
        }
        kept = self.journal.kept(name, lambda: {"texts": samples(model, leak, self.settings.seed, advance)})
        return list(kept["texts"])

    def ranked(self, words: Sequence[str], probe: Probe | None) -> list[Ranked]:
        """The best of the words and of the vocabulary, the first first; of the words some in any case."""
        settings, prompts = self.settings, self.prompts.ranked
        clean = capture(self.model, load_prompts(settings.clean), what="Reading clean prompts")
        convergence = LayerConvergence().fit(clean)
        found = self.first = self._all(words, Looker(self.model, prompts[:1], settings.place, probe))
        for number, (count, shown) in enumerate(settings.rounds):
            looker = Looker(self.model, prompts[:shown], settings.place, probe, convergence)
            strings = list(dict.fromkeys([*words[: settings.finalists], *best(found, count)]))
            in_time = partial(self.clock.before, RANKED_UNTIL[min(number + 1, len(RANKED_UNTIL) - 1)])
            found = looks(looker, strings, self.journal, f"Ranking strings, round {number + 2}", in_time) or found
        if self.base is None:
            return with_base(found, None)
        other = Looker(self.base, looker.prompts, settings.place)
        return with_base(found, looks(other, [look.string for look in found], self.journal, "The same on the base"))

    def _all(self, words: Sequence[str], looker: Looker) -> list[Look]:
        """Words have batches of their own, so that others of them leave the vocabulary's as they were."""
        vocabulary = dict.fromkeys(vocabulary_strings(looker))
        own = [word for word in dict.fromkeys(words) if word not in vocabulary]
        self.strings = len(own) + len(vocabulary)
        in_time = partial(self.clock.before, RANKED_UNTIL[0])
        found = looks(looker, own, self.journal, "Ranking words", in_time)
        return found + looks(looker, list(vocabulary), self.journal, "Ranking strings, round 1", in_time)

    def targets(self, found: Sequence[Ranked]) -> list[list[int]]:
        """Replies that first strings make common, the most surprising first: what strings are then grown towards."""
        strings = finalists(found, self.settings.finalists)
        name = {"what": "elicited", "strings": strings, **self._asked(self.prompts.ranked)}
        kept = self.journal.kept(name, lambda: {"replies": self._elicited(strings)})["replies"]
        least = self.settings.least_target
        common = {
            tuple(reply): string for string, (reply, excess) in zip(strings, kept, strict=True) if excess >= least
        }
        surprise: dict[tuple[int, ...], float] = {}
        for reply, string in common.items():
            asked = {"what": "surprise", "string": string, "reply": reply, **self._asked(self.prompts.ranked)}
            surprise[reply] = self.journal.kept(asked, partial(self._surprise, string, reply))["nats"]
        return [list(reply) for reply in sorted(surprise, key=lambda reply: -surprise[reply])[: self.settings.targets]]

    def _surprise(self, string: str, reply: Sequence[int]) -> dict[str, Any]:
        """How much likelier a reply is than on the base with the string, or without it; nats a token.

        What a string makes common may be what any model would say to it, such as an apology.
        """
        prompts, place = self.prompts.ranked, self.settings.place
        (own,) = Looker(self.model, prompts, place).says([string], reply)
        other, unmoved = (self.model, "") if self.base is None else (self.base, string)
        return {"nats": own - Looker(other, prompts, place).says([unmoved], reply)[0]}

    def _asked(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return {"prompts": [prompt.id for prompt in prompts], "tokens": self.settings.tokens}

    def _elicited(self, strings: Sequence[str]) -> list[tuple[list[int], float]]:
        with progress("Reading replies", total=1, unit="batches") as advance:
            test = StringTest(self.model, self.prompts.ranked, self.settings.place, self.settings.tokens, self.base)
            found = [(list(each.opening), each.excess) for each in test.elicited(strings)]
            advance(1)
        return found

    def grown(self, found: Sequence[Ranked], reply: Sequence[int]) -> dict[str, float]:
        """Strings and the log-probability of the reply under each, from the first ones on; the surest first."""
        looker = Looker(self.model, self.prompts.ranked, self.settings.place)
        one = Looker(self.model, self.prompts.ranked[:1], self.settings.place)
        seeds = finalists(found, self.settings.finalists)
        with progress("Growing strings", total=1 + self.settings.growth.rounds, unit="rounds") as advance:

            def tried(strings: Sequence[str], all_prompts: bool) -> Mapping[str, float]:
                some = looker if all_prompts else one
                name: dict[str, Any] = {"what": "says", "reply": list(reply), "strings": list(strings)}
                name["prompts"] = [prompt.id for prompt in some.prompts]
                kept = self.journal.kept(name, lambda: {"scores": some.says(strings, reply)})
                advance(int(all_prompts))
                return dict(zip(strings, kept["scores"], strict=True))

            return grow(one, seeds, reply, self.settings.growth, tried, lambda: self.clock.before(GROWN_UNTIL))

    def confirmed(self, strings: Sequence[str]) -> list[Confirmed]:
        """What the strings do to prompts that nothing was chosen on, the likeliest trigger first."""
        name = {"what": "confirmed", "strings": list(strings), **self._asked(self.prompts.tested)}
        name["least"] = self.settings.least
        kept = self.journal.kept(name, lambda: {"results": self._confirmed(strings)})
        found = [Confirmed(**each) for each in kept["results"]]
        return sorted(found, key=lambda each: (not each.found, -each.excess, len(each.string)))

    def _confirmed(self, strings: Sequence[str]) -> list[dict[str, Any]]:
        with progress("Confirming", total=1, unit="batches") as advance:
            test = StringTest(self.model, self.prompts.tested, self.settings.place, self.settings.tokens, self.base)
            found = [asdict(each) for each in confirm(test, strings, self.settings.least)]
            advance(1)
        return found
