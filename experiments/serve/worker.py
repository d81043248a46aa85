"""The one thread that runs the model: it takes requests in, lets all rows speak a token, and mends itself."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...activations import DefectionError, Model
from ...activations.models.modes import in_use
from ...activations.prompts.chat import NEXT_TURN
from ...activations.reading.generate import end_tokens
from ...probes import Alarm, Probe
from ...probes.monitoring.taps import Taps
from .choosing import refuse_unknown
from .rows import Ask, Failure, Row
from .speaking import Speaking
from .spelling import Spelling

ADMITTED = 4
"""Prompts that are read between two tokens of those who speak already."""
PATIENCE = 3
"""Failures one after another, with nothing said between them, from which on the worker calls itself ill."""


class Full(Exception):
    """So many wait already that one more would wait too long."""


class Observer(Protocol):
    """Who counts what the worker does; called on its thread."""

    def stepped(self, seconds: float) -> None:
        """Every row has read one token."""
        ...

    def failed(self) -> None:
        """Replies were given up."""
        ...


@dataclass(frozen=True)
class Served:
    """A model, its probe, the alarm, and whether that ends replies."""

    model: Model
    probe: Probe
    alarm: Alarm
    stops: bool = False


class Worker:
    """Makes replies for whoever submits an `Ask`, up to `rows` at once; up to `waiting` others wait.

    A model whose rows cannot speak together makes one at a time.

    Whatever goes wrong while the model runs, the thread's own death among it, is told to those whose replies it was,
    and the next ones are made by a thread and a cache that are new.
    """

    def __init__(self, served: Served, *, rows: int = 32, waiting: int = 64, observer: Observer | None = None) -> None:
        served.probe.refuse_model(served.model.identity)
        refuse_unknown(served.model.network.generation_config)
        self.served, self.room, self.observer = served, waiting, observer
        self.most = rows if served.model.skips_padding else 1
        self.ends = frozenset(end_tokens(served.model).tolist())
        self.failures = 0
        """One after another, since a token was last said."""
        self._tokenizer = copy.deepcopy(served.model.tokenizer)  # one that no other thread writes prompts with
        self._taps = Taps(served.model, served.probe)
        self._waiting: deque[Ask] = deque()
        self._rows: list[Row] = []
        self._entering: Ask | None = None
        """Neither waiting nor speaking: its prompt is being read."""
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, ask: Ask) -> None:
        """Queue a request. Raises `Full` where too many wait, DefectionError after `close`."""
        with self._changed:
            if self._closing:
                raise DefectionError("the server is shutting down")
            free = self.most - len(self._rows) - (self._entering is not None)
            if self.waiting >= self.room + max(0, free):
                raise Full
            self._waiting.append(ask)
            self._changed.notify()
        self.mend()

    def mend(self) -> None:
        """Start the thread where there is none, or none any more; to be called now and then."""
        with self._changed:
            if self._closing or (self._thread is not None and self._thread.is_alive()):
                return
            self._give_up("the worker died and was started anew; ask again")
            self._thread = threading.Thread(target=self._run, name="model", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that nobody has begun to answer."""
        return sum(not ask.hung_up.is_set() for ask in tuple(self._waiting))

    @property
    def speaking(self) -> int:
        """Replies that are being made."""
        return len(self._rows)

    @property
    def is_well(self) -> bool:
        """Whether the last failures, if any, were few."""
        return self.failures < PATIENCE

    def close(self, patience: float = 5.0) -> None:
        """Give up what is on its way, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(patience)

    def _run(self) -> None:
        """The thread: until closed, and begun anew after whatever goes wrong, its own end (`SystemExit`) among it."""
        while not self._closing:
            try:
                with in_use(self.served.model.network), self._taps.attached(), torch.inference_mode():
                    self._serve()
            except BaseException as error:
                self._give_up(f"the worker failed ({_told(error)}) and was started anew; ask again")
        self._give_up("the server is shutting down", fault=False)

    def _serve(self) -> None:
        speaking = Speaking(self.served.model, self._taps)
        while True:
            with self._changed:
                while not (self._waiting or self._rows or self._closing):
                    self._changed.wait()
            if self._closing:
                return
            self._sweep(speaking)
            for _ in range(ADMITTED):
                if len(self._rows) < self.most:
                    self._admit(speaking)
            if self._rows:
                began = time.perf_counter()
                self._step(speaking)
                if self.observer:
                    self.observer.stepped(time.perf_counter() - began)

    def _sweep(self, speaking: Speaking) -> None:
        """Let rows go that are over, or whose client is gone."""
        kept = [n for n, row in enumerate(self._rows) if not (row.over or row.ask.hung_up.is_set())]
        speaking.keep(kept)
        self._rows = [self._rows[n] for n in kept]

    def _admit(self, speaking: Speaking) -> None:
        """Let whoever has waited longest in."""
        with self._changed:
            while self._waiting and self._waiting[0].hung_up.is_set():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._entering = self._waiting[0]
            self._waiting.popleft()
        ask = self._entering
        try:
            row = self._row(ask)
            logits, score = speaking.enter(ask.ids)
        except Exception as error:  # the others' cache is as it was
            self._entering = None
            self._fail([ask], f"the prompt could not be read ({_told(error)}); ask again")
            return
        self._rows.append(row)
        self._entering = None
        self._advance(row, logits, score, int(logits.argmax()))
        self._sweep(speaking)

    def _row(self, ask: Ask) -> Row:
        plain = () if self._tokenizer.chat_template else (NEXT_TURN,)
        spelling = Spelling(self._tokenizer, (*ask.stops, *plain))
        return Row(ask, spelling, self.served.alarm, self.served.model.device, stops=self.served.stops)

    def _step(self, speaking: Speaking) -> None:
        logits, scores = speaking.step([row.said[-1] for row in self._rows])
        likeliest = logits.argmax(dim=-1).tolist()
        for row, own, score, token in zip(self._rows, logits, scores.tolist(), likeliest, strict=True):
            self._advance(row, own, score, token)

    def _advance(self, row: Row, logits: Tensor, score: float, likeliest: int) -> None:
        """One row's share of a step; what goes wrong with its own settings is its own failure."""
        self.failures = 0
        try:
            row.read(score)
            if not row.over:
                row.choose(logits, likeliest, self.ends)
        except Exception as error:
            row.over = True
            self._fail([row.ask], f"no next token could be chosen ({_told(error)})")

    def _give_up(self, sentence: str, *, fault: bool = True) -> None:
        """Tell everybody whose reply has begun that it will not end; at a shutdown, all who wait as well.

        Nobody is forgotten before being told: the thread may be killed in here, too.
        """
        lost = [row.ask for row in self._rows if not row.over]
        if self._entering is not None:
            lost.append(self._entering)
        if self._closing:
            lost += self._waiting
        self._fail(lost, sentence, fault=fault)
        self._rows, self._entering = [], None
        if self._closing:
            self._waiting.clear()

    def _fail(self, asks: Sequence[Ask], sentence: str, *, fault: bool = True) -> None:
        if asks and fault:
            self.failures += 1
            if self.observer:
                self.observer.failed()
        for ask in asks:
            ask.tell(Failure(sentence, fault))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
