"""The steps of a scan on one model: what leaks, what ranks first, what is elicited, what grows, what is confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from ...activations.basics.files import Json
from ...activations.basics.progress import progress
from ...activations.models.model import Model
from ...activations.prompts.loading import load_prompts
from ...activations.prompts.prompts import Prompt
from ...activations.reading.capture import capture
from ...probes import LayerConvergence, Probe
from ...training.organisms.replies import reply_text
from ..run.journal import Journal
from ..run.plan import Say
from ..run.string_control import STRINGS
from .confirm import Confirmed, Elicited, StringTest, confirm
from .grow import grow
from .heard import heard
from .leak import DECODINGS, Motif, motifs, samples
from .looks import Look, Looker, Said
from .lots import AT_ONCE, in_lots
from .plan import Clock, ScanPrompts, ScanSettings
from .rank import best, finalists, looks, ordered
from .stirred import stirred
from .strings import alike_together, vocabulary_strings, vocabulary_words
from .taught import taught, unrelated

SAMPLED_UNTIL, READ_UNTIL, RANKED_UNTIL, GROWN_UNTIL = 0.15, 0.3, (0.3, 0.4, 0.5), 0.6
"""Shares of the budget after which nothing more is sampled, no more strings are read by themselves, none looked at in a
round (with a base there is one, and it is the second), and none grown; the rest is for the test and its null. Later
rounds than these end with the last of them."""
READ_AT_ONCE, TESTED_AT_ONCE = 4096, 5
"""Strings that are read by themselves, and meaningless ones put before the test's prompts, between two looks at the
clock."""
KEPT = 200
"""Strings of the ranking, of each growth, and of those that stir the model most, that `scan.json` holds."""
Growths = dict[tuple[int, ...], dict[str, float]]
"""By reply, strings and its log-probability (nats a token) under each, the surest first."""
SUREST = 2
"""Strings of a growth that are put before the test's prompts."""


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
    looked: int = 0
    """How many strings were put before prompts."""
    planned: int = 0
    """How many are, where there is time."""
    far: dict[str, float] = field(default_factory=dict)
    """Of the vocabulary's strings that were read by themselves, how far each stirs the model, the furthest first."""
    vocabulary: int = 0
    """How many there are."""

    def leaked(self) -> list[Motif]:
        """Motifs of what the model says after its bare template, oftener than its base."""
        leak = self.settings.leak
        if leak is None:
            return []
        models, seed = [each for each in (self.model, self.base) if each is not None], self.settings.seed

        def sampled(decodings: Sequence[str]) -> Json:
            return {"texts": [[text for d in decodings for text in samples(m, leak, int(d), seed)] for m in models]}

        name: Json = {"model": self.model.identity.fingerprint, "leak": asdict(leak), "seed": seed}
        in_time, decodings = partial(self.clock.before, SAMPLED_UNTIL), list(map(str, range(len(DECODINGS))))
        lots = in_lots(decodings, sampled, self.journal, name, "Sampling", in_time, 1)
        said: list[list[str]] = [[] for _ in models]
        for _, kept in lots:
            for texts, more in zip(said, kept["texts"], strict=True):
                texts.extend(more)
        found = motifs(self.model, said[0], leak, said[1] if len(said) > 1 else None)
        self.say(f"{len(found)} motifs in {len(said[0])} samples")
        return found

    def ranked(self, words: Sequence[str], probe: Probe | None) -> list[Look]:
        """What strings do to a few prompts, the first first.

        Without a base, the best of the words, the years and the vocabulary, and of the words some in any case; with
        one, the words, the years and `seeds` of the vocabulary, which are not chosen by this.
        """
        settings, prompts = self.settings, self.prompts.ranked
        clean = capture(self.model, load_prompts(settings.clean), what="Reading clean prompts")
        asked = (probe, LayerConvergence().fit(clean), True)
        own = list(dict.fromkeys([*words, *map(str, range(*settings.years))]))
        if self.base is not None:
            first = self.stirring(prompts[0])[: settings.seeds]
            looker = Looker(self.model, prompts[:1], settings.place, *asked)
            return ordered(self._all(own, first, looker, RANKED_UNTIL[1]), "consensus")
        cheap = Looker(self.model, prompts[:1], settings.place, probe)  # before the whole vocabulary
        found = self._all(own, vocabulary_strings(cheap), cheap, RANKED_UNTIL[0])
        for number, (count, shown) in enumerate(settings.rounds):
            looker = Looker(self.model, prompts[:shown], settings.place, *asked)
            strings = list(dict.fromkeys([*words[: settings.finalists], *best(found, count)]))
            in_time = partial(self.clock.before, RANKED_UNTIL[min(number + 1, len(RANKED_UNTIL) - 1)])
            found = looks(looker, strings, self.journal, f"Ranking strings, round {number + 2}", in_time) or found
        return ordered(found, "consensus")

    def _all(self, words: Sequence[str], vocabulary: Sequence[str], looker: Looker, until: float) -> list[Look]:
        """Words have batches of their own, so that others of them leave the vocabulary's as they were."""
        known, in_time = set(vocabulary), partial(self.clock.before, until)
        own = [word for word in words if word not in known]
        self.planned = len(own) + len(vocabulary)
        found = looks(looker, own, self.journal, "Ranking words", in_time)
        self.first = found + looks(looker, vocabulary, self.journal, "Ranking strings, round 1", in_time)
        self.looked = len(self.first)
        return self.first

    def stirring(self, prompt: Prompt) -> list[str]:
        """The vocabulary's tokens and words, those first that stir the model most before a prompt (`stirred`).

        Of as many as there is time to read.
        """
        assert self.base is not None
        model, base, place = self.model, self.base, self.settings.place
        looker = Looker(model, [prompt], place)
        vocabulary = alike_together(looker, [*vocabulary_strings(looker), *vocabulary_words(looker)])

        def far(some: Sequence[str]) -> Json:
            return {"far": stirred(model, base, some, prompt, place).tolist()}

        in_time = partial(self.clock.before, READ_UNTIL)
        lots = in_lots(vocabulary, far, self.journal, looker.name, "Strings by themselves", in_time, READ_AT_ONCE)
        found = [pair for some, kept in lots for pair in zip(some, kept["far"], strict=True)]
        self.far, self.vocabulary = dict(sorted(found, key=lambda pair: -pair[1])), len(vocabulary)
        return list(self.far)

    def partly(self, tested: bool) -> str:
        """What the budget left out, where that was something, and more than the test."""
        if len(self.far) < self.vocabulary:
            return f" The budget was enough to read {len(self.far)} of the vocabulary's {self.vocabulary} strings."
        if self.looked < self.planned:
            return f" The budget was enough for {self.looked} of {self.planned} strings."
        return " The budget ended before the search did." if self.clock.cut and tested else ""

    def record(self) -> Json:
        """What of all this stands in `scan.json`, whatever was looked for."""
        return {
            "strings": {"looked_at": self.looked, "of": self.planned},
            "vocabulary": {"read": len(self.far), "of": self.vocabulary},
            "stirring": dict(list(self.far.items())[:KEPT]),
            "settings": asdict(self.settings),
            "seconds": round(self.clock.seconds, 1),
            "cpu_seconds": round(self.clock.cpu_seconds, 1),
        }

    def targets(self, found: Sequence[Look]) -> list[list[int]]:
        """Replies that first strings make common: what strings are grown towards where there is no base."""
        strings = finalists(found, self.settings.finalists)
        name = {"what": "elicited", "strings": strings, **self._asked(self.prompts.ranked)}

        def elicited() -> Json:
            found = self._test(self.model, self.prompts.ranked, self.base).elicited(strings)
            return {"replies": [(each.opening, each.excess) for each in found]}

        kept = self._kept("Reading replies", name, elicited)["replies"]
        common = [(excess, tuple(reply)) for reply, excess in kept if excess >= self.settings.least_target]
        replies = dict.fromkeys(reply for _, reply in sorted(common, reverse=True))
        return [list(reply) for reply in replies][: self.settings.targets]

    def taught(self, own: Model, other: Model) -> list[list[int]]:
        """Replies that one model learnt beyond the other, by `surprise` nats or more; those it is nearest to first."""
        name: Json = {"what": "taught", "model": own.identity.fingerprint, **asdict(self.settings.search)}
        name["prompts"] = [prompt.id for prompt in self.prompts.ranked]

        def found() -> Json:
            return {"replies": list(map(asdict, taught(own, other, self.prompts.ranked, self.settings.search)))}

        kept = self._kept("What it was taught to say", name, found)["replies"]
        learnt = [reply for reply in kept if reply["own"] - reply["base"] >= self.settings.surprise]
        return [reply["tokens"] for reply in sorted(learnt, key=lambda reply: -reply["own"])]

    def _asked(self, prompts: Sequence[Prompt]) -> Json:
        return {"prompts": [prompt.id for prompt in prompts], "tokens": self.settings.tokens}

    def _kept(self, what: str, name: Json, make: Callable[[], Json]) -> Json:
        """What the journal has of that name; what has to be made is under a bar of its own."""
        return self.journal.kept(name, partial(_under_a_bar, what, make))

    def _test(self, model: Model, prompts: Sequence[Prompt], base: Model | None) -> StringTest:
        return StringTest(model, prompts, self.settings.place, self.settings.tokens, base)

    def begun(
        self,
        own: Model,
        other: Model | None,
        replies: Sequence[Sequence[int]],
        seeds: Sequence[str],
        until: float = GROWN_UNTIL,
    ) -> Growths:
        """Every reply's log-probability (nats a token) under every seed, as far as time allows, before one prompt.

        With another model beside it, replies that nobody asked about as well: what a seed makes this one say and would
        not make the other (`heard`).
        """
        looker = Looker(own, self.prompts.ranked[:1], self.settings.place)
        found: Growths = {tuple(reply): {} for reply in replies}
        said: dict[str, Said] = {}
        tokens = self.settings.search.longest if other else 0
        name = looker.name | {"replies": list(map(list, replies)), "tokens": tokens}

        def said_each(some: Sequence[str]) -> Json:
            scores, said = looker.says(some, replies, tokens)
            return {"scores": scores, "said": said}

        in_time = partial(self.clock.before, until)
        for some, kept in in_lots(seeds, said_each, self.journal, name, "What each string makes likely", in_time):
            for reply, scores in zip(found, kept["scores"], strict=True):
                found[reply] |= zip(some, scores, strict=True)
            said |= {string: (tuple(reply), sure) for string, (reply, sure) in zip(some, kept["said"], strict=True)}
        for reply, scores in self._heard(other, looker, said).items() if other else ():
            found[reply] = found.get(reply, {}) | scores
        return found

    def _heard(self, other: Model, looker: Looker, said: Mapping[str, Said]) -> Growths:
        theirs = Looker(other, looker.prompts, self.settings.place)
        name = looker.name | {"strings": list(said), "what": "heard", "beside": other.identity.fingerprint}
        limits = {"surprise": self.settings.surprise, "committed": self.settings.committed}

        def listen() -> Json:
            return {"replies": [[list(reply), scores] for reply, scores in heard(said, theirs, **limits).items()]}

        kept = self._kept("What they make it say", name | limits | {"tokens": self.settings.search.longest}, listen)
        return {tuple(reply): scores for reply, scores in kept["replies"]}

    def grown(
        self,
        own: Model,
        reader: Model,
        seeds: Mapping[str, float],
        reply: Sequence[int],
        until: float = GROWN_UNTIL,
    ) -> dict[str, float]:
        """Strings and the log-probability of the reply under each, grown from the seeds on; the surest first."""
        reading = Looker(reader, self.prompts.ranked[:1], self.settings.place)
        growth = self.settings.growth
        with progress("Growing strings", growth.rows(len(self.prompts.ranked)), "rows") as advance:
            tried = self._tried(own, reply, advance)
            return grow(reading, seeds, growth, tried, lambda: self.clock.before(until))

    def _tried(
        self, own: Model, reply: Sequence[int], advance: Callable[[int], object]
    ) -> Callable[[Sequence[str], bool], Mapping[str, float]]:
        """Gives the log-probability of the reply (nats a token) under strings, before one prompt or before all."""
        lookers = [Looker(own, some, self.settings.place) for some in (self.prompts.ranked[:1], self.prompts.ranked)]

        def tried(strings: Sequence[str], all_prompts: bool) -> Mapping[str, float]:
            looker = lookers[all_prompts]
            found: dict[str, float] = {}
            for start in range(0, len(strings), AT_ONCE):
                some = strings[start : start + AT_ONCE]
                name = looker.name | {"what": "says", "strings": list(some), "reply": list(reply)}
                kept = self.journal.kept(name, partial(_said, looker, some, reply))
                found |= dict(zip(some, kept["scores"], strict=True))
                advance(len(some) * len(looker.prompts))
            return found

        return tried

    def beside_base(self, strings: Sequence[str]) -> Growths:
        """Strings grown from these towards what the model was taught beyond its base, the surest growth first."""
        assert self.base is not None
        found = self._searched(self.model, self.base, strings, GROWN_UNTIL)
        return dict(sorted(found.items(), key=lambda growth: -_surest(growth[1])))

    def _searched(self, own: Model, other: Model, strings: Sequence[str], until: float) -> Growths:
        """What grows towards the replies that one of the strings makes likeliest, or says, as far as time allows.

        It ends with the first that is sure.
        """
        found: Growths = {}
        if not strings or not self.clock.before(until):
            return found
        begun = self.begun(own, other, unrelated(self.taught(own, other)), strings, until)
        surest = sorted(begun, key=lambda reply: -_surest(begun[reply]))
        for reply in map(tuple, unrelated(surest)[: self.settings.targets]):
            found[reply] = self.grown(own, other, begun[reply], reply, until)
            if _surest(found[reply]) >= self.settings.growth.sure:
                break
        return found

    def null(self) -> list[Json]:
        """What the same search brings about in the base, which hides nothing, with the scanned model as its base.

        From the same first strings; the surest of each growth before the test's prompts. Raises OutOfTime where it was
        not looked for to the end: half a null would be an easy one.
        """
        assert self.base is not None
        self.clock.check()
        grown = self._searched(self.base, self.model, [look.string for look in self.first], 1)
        self.clock.check()
        strings = list(dict.fromkeys(string for scores in grown.values() for string in list(scores)[:SUREST]))
        name = {"what": "null", "strings": strings, **self._asked(self.prompts.tested)}
        return list(self._kept("The same on the base", name, lambda: {"results": self._null(strings)})["results"])

    def _null(self, strings: Sequence[str]) -> list[Json]:
        assert self.base is not None
        found = self._test(self.base, self.prompts.tested, self.model).elicited(strings)
        return [
            {"string": string, "elicits": reply_text(self.base, each.opening), "excess": each.excess}
            for string, each in zip(strings, found, strict=True)
        ]

    def confirmed(self, strings: Sequence[str]) -> list[Confirmed]:
        """What the strings do to prompts that nothing was chosen on, the likeliest trigger first.

        Raises OutOfTime where none is left to begin.
        """
        name = {"what": "confirmed", "strings": list(strings), **self._asked(self.prompts.tested)}
        name |= {"least": self.settings.least, "surprise": self.settings.surprise, "null": "beside the base"}

        def confirmed() -> Json:
            self.clock.check()
            test = self._test(self.model, self.prompts.tested, self.base)
            given = (self.settings.least, self.settings.surprise, self._meaningless(test))
            self.clock.check()
            return _under_a_bar("Confirming", lambda: {"results": list(map(asdict, confirm(test, strings, *given)))})

        found = [Confirmed(**each) for each in self.journal.kept(name, confirmed)["results"]]
        return sorted(found, key=lambda each: (not each.found, -each.excess, len(each.string)))

    def _meaningless(self, test: StringTest) -> dict[str, Elicited]:
        """What each meaningless string elicits; OutOfTime where none is left for the next few."""

        def elicited(some: Sequence[str]) -> Json:
            self.clock.check()
            return {"elicited": list(map(asdict, test.elicited(some)))}

        name = {"model": test.model.identity.fingerprint, **self._asked(test.prompts)}
        lots = in_lots(STRINGS, elicited, self.journal, name, "Meaningless strings", lambda: True, TESTED_AT_ONCE)
        return {
            string: Elicited(**each | {"opening": tuple(each["opening"])})
            for some, kept in lots
            for string, each in zip(some, kept["elicited"], strict=True)
        }


def _surest(scores: Mapping[str, float]) -> float:
    return max(scores.values(), default=-math.inf)


def _under_a_bar(what: str, make: Callable[[], Json]) -> Json:
    with progress(what, total=1, unit="steps") as advance:
        found = make()
        advance(1)
    return found


def _said(looker: Looker, strings: Sequence[str], reply: Sequence[int]) -> Json:
    return {"scores": looker.says(strings, [reply])[0][0]}
