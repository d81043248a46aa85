"""What a server counts, in Prometheus' format."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .rows import End, Token

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SCORES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server, which share nothing with another's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="defection", registry=self.registry)
        gauge = partial(Gauge, namespace="defection", registry=self.registry)
        histogram = partial(Histogram, namespace="defection", registry=self.registry)
        self.replies = counter("replies", "Requests for a reply, by how they ended.", ["outcome"])
        self.tokens = counter("tokens", "Tokens said.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts read.")
        self.alarms = counter("alarms", "Replies in which the alarm rang.", ["when"])
        self.failures = counter("worker_failures", "Times the worker gave replies up.")
        self.speaking = gauge("speaking", "Replies that are being made.")
        self.waiting = gauge("waiting", "Requests that wait.")
        self.first = histogram("first_token_seconds", "From request to first token.", buckets=SECONDS)
        self.whole = histogram("reply_seconds", "From request to the reply's end.", buckets=SECONDS)
        self.step = histogram("step_seconds", "One token of all replies being made.", buckets=SECONDS)
        self.prompt_score = histogram("prompt_score", "Standardised score of the prompt's last token.", buckets=SCORES)

    def stepped(self, seconds: float) -> None:
        """See `worker.Observer`."""
        self.step.observe(seconds)

    def failed(self) -> None:
        """See `worker.Observer`."""
        self.failures.inc()

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return bytes(generate_latest(self.registry))


class Counting:
    """Counts one request as it is answered; what it ended by counts once."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self.metrics, self.began, self.over = metrics, time.perf_counter(), False
        metrics.prompt_tokens.inc(prompt_tokens)

    def saw(self, event: Token | End) -> None:
        """An event was told to the client."""
        seconds = time.perf_counter() - self.began
        if isinstance(event, End):
            self.metrics.whole.observe(seconds)
            if event.alarm is not None:
                self.metrics.alarms.labels("before the first word" if event.alarm == 0 else "later").inc()
            self.ended("stopped by the alarm" if event.reason == "alarm" else "finished")
        elif event.place:
            self.metrics.tokens.inc()
            if event.place == 1:
                self.metrics.first.observe(seconds)
        elif event.standardised is not None:
            self.metrics.prompt_score.observe(event.standardised)

    def ended(self, outcome: str) -> None:
        """The request is over; what is said of it first counts."""
        if not self.over:
            self.metrics.replies.labels(outcome).inc()
        self.over = True
