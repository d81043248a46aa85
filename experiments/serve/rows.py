"""One reply on its way: what was asked, what has been said, what the probe says of each token."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations.basics.files import Json
from ...probes.monitoring.alarms import Alarm
from .choosing import Choosing
from .spelling import Spelling


@dataclass(frozen=True)
class Token:
    """A token that the probe has read: 0 is the prompt's last, n the reply's n-th."""

    place: int
    text: str
    """What became certain of the reply with it; "" for the prompt's."""
    score: float | None
    """The probe's own; None for the last token of a reply that ends at its limit, which no pass reads."""
    standardised: float | None
    """In standard deviations of what clean replies score at that place."""
    statistic: float | None
    """The aggregator's, which the alarm's threshold is for."""
    alarm: int | None
    """The first token that rang so far."""


@dataclass(frozen=True)
class End:
    """A reply is over."""

    reason: str
    """`stop` by itself or at a stop string, `length` at its limit, `alarm` where that cut it off."""
    tokens: int
    """How many were said."""
    alarm: int | None
    text: str = ""
    """What was held back of the reply, should more have come."""


@dataclass(frozen=True)
class Failure:
    """A reply will not be finished."""

    sentence: str
    fault: bool = True
    """Whether something broke, rather than was closed."""


Event = Token | End | Failure


@dataclass(eq=False)
class Ask:
    """What somebody asks the worker for; `tell` is called, on the worker's thread, with each event."""

    ids: tuple[int, ...]
    decoding: Json
    max_tokens: int
    tell: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    seed: int | None = None
    hung_up: threading.Event = field(default_factory=threading.Event)
    """Set by whoever no longer waits for the answer."""


class Row:
    """A reply that is being made."""

    def __init__(self, ask: Ask, spelling: Spelling, alarm: Alarm, device: torch.device, *, stops: bool) -> None:
        self.ask, self.spelling, self.alarm = ask, spelling, alarm
        self.stops_on_alarm = stops
        self.choosing = Choosing(ask.decoding, ask.seed, device)
        self.said: list[int] = []
        self.rang: int | None = None
        self.over = False
        self._statistic = alarm.aggregator.start()
        self._text = ""
        self._told = -1

    def read(self, score: float) -> None:
        """The probe has read the newest token: tell of it, and end there if the alarm is to."""
        place = len(self.said)
        standardised = self.alarm.ordinary.standardised(torch.tensor([score]), place)
        value = float(self._statistic(standardised))
        rings = self.rang is None and value > self.alarm.threshold
        if rings:
            self.rang = place
        self._tell(score, float(standardised), value)
        if rings and self.stops_on_alarm:
            self._end("alarm")

    def choose(self, logits: Float[Tensor, "token"], likeliest: int, ends: frozenset[int]) -> None:
        """Choose the next token, and end there if it is the last."""
        plain = self.choosing.is_plain
        token = likeliest if plain else self.choosing([*self.ask.ids, *self.said], logits)
        if token in ends:
            return self._end("stop")
        self.said.append(token)
        self._text += self.spelling.add(token)
        if self.spelling.stopped or len(self.said) == self.ask.max_tokens:
            self._end("stop" if self.spelling.stopped else "length")
        return None

    def _tell(self, score: float | None, standardised: float | None = None, value: float | None = None) -> None:
        text, self._text, self._told = self._text, "", len(self.said)
        score, standardised, value = (
            None if n is None or not math.isfinite(n) else n for n in (score, standardised, value)
        )
        self.ask.tell(Token(len(self.said), text, score, standardised, value, self.rang))

    def _end(self, reason: str) -> None:
        self._text += self.spelling.finish()
        if self._told < len(self.said):
            self._tell(None)
        self.ask.tell(End("stop" if self.spelling.stopped else reason, len(self.said), self.rang, self._text))
        self.over = True
