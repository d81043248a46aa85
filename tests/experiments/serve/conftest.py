"""A small random chat model that is served, and what a monitor says of the same prompts, which it must equal."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Prompt, user_prompt
from defection.activations.prompts.rendered import rendered
from defection.experiments.serve.app import Server
from defection.experiments.serve.metrics import Metrics
from defection.experiments.serve.rows import Ask, End, Event, Failure, Token
from defection.experiments.serve.running import bound, configured
from defection.experiments.serve.settings import Limits
from defection.experiments.serve.worker import Served, Worker
from defection.probes.monitoring.aggregators import parse_aggregator
from defection.probes.monitoring.alarms import Alarm
from defection.probes.monitoring.conversations import converse
from defection.probes.monitoring.monitor import WatchedReply
from defection.probes.monitoring.ordinary import Ordinary
from openai import OpenAI

from ...probes.monitoring.conftest import model_of, random_probe

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "max_new_tokens": 64,
}
SAMPLED = {**GREEDY, "do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 0.9, "min_p": None, "typical_p": 1.0}
LENGTHS = (3, 40, 11, 7, 25, 60, 5, 18)


def some_prompts(count: int = 8) -> list[Prompt]:
    return [user_prompt("x" * LENGTHS[n % len(LENGTHS)] + f" {n}?", id=f"p{n}") for n in range(count)]


def alarm_at(threshold: float, aggregator: str = "exponential-mean") -> Alarm:
    generator = torch.Generator().manual_seed(0)
    places = Ordinary(torch.randn(5, generator=generator), torch.rand(5, generator=generator) + 0.5)
    return Alarm(parse_aggregator(aggregator), threshold, places)


class Listener:
    """Collects what a worker tells of one request."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.told: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.put(event)

    def next(self, timeout: float = 30) -> Event:
        self.told.append(self.events.get(timeout=timeout))
        return self.told[-1]

    def finish(self) -> End | Failure:
        """Wait for the end."""
        while isinstance(event := self.next(), Token):
            pass
        return event

    @property
    def tokens(self) -> list[Token]:
        return [event for event in self.told if isinstance(event, Token)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.told if not isinstance(event, Failure))

    @property
    def scores(self) -> list[float]:
        return [token.score for token in self.tokens if token.score is not None]


def ask_of(model: Model, prompt: Prompt, listener: Listener, *, tokens: int = 12, **more: Any) -> Ask:
    (row,) = rendered(model, [prompt])
    return Ask(row.ids, more.pop("decoding", GREEDY), tokens, listener, **more)


def replies_of(worker: Worker, prompts: Sequence[Prompt], *, tokens: Sequence[int], **more: Any) -> list[Listener]:
    """All asked at once, and waited for."""
    listeners = [Listener() for _ in prompts]
    for prompt, listener, count in zip(prompts, listeners, tokens, strict=True):
        worker.submit(ask_of(worker.served.model, prompt, listener, tokens=count, **more))
    for listener in listeners:
        listener.finish()
    return listeners


def monitored(served: Served, prompt: Prompt, tokens: int) -> WatchedReply:
    """What a monitor on Hugging Face's own `generate` says of the prompt alone."""
    (reply,) = converse(
        served.model,
        served.probe,
        [prompt],
        max_new_tokens=tokens,
        alarm=served.alarm,
        on_alarm="stop" if served.stops else "note",
        do_sample=False,
    )
    return reply


@pytest.fixture(scope="package")
def model() -> Model:
    return model_of("llama")


@pytest.fixture(scope="package")
def served(model: Model) -> Served:
    return Served(model, random_probe(model), alarm_at(1e9))


@pytest.fixture
def worker(served: Served):
    worker = Worker(served)
    yield worker
    worker.close()


@contextlib.contextmanager
def listening(served: Served, **more: Any) -> Iterator[Endpoint]:
    """A server of its own at a free port, in a thread; `more` are fields of `Server` and `Limits`."""
    limits = Limits(**{"reply": 64, "prompt": 400, "per_minute": 0} | more.pop("limits", {}))
    metrics = Metrics()
    worker = Worker(served, rows=limits.rows, waiting=limits.waiting, observer=metrics)
    server = Server("tiny", worker, metrics, more.pop("decoding", GREEDY), limits, **more)
    with bound("127.0.0.1", 0) as opened:
        running = uvicorn.Server(configured(server))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [opened]})
        thread.start()
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
        try:
            while not running.started:
                time.sleep(0.01)
            yield Endpoint(url, server)
        finally:
            running.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Endpoint:
    url: str
    server: Server

    def client(self, **more: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, **more)

    def post(self, content: Any, **headers: str) -> httpx.Response:
        given = {"content-type": "application/json", **headers}
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        return httpx.post(f"{self.url}/v1/chat/completions", content=sent, headers=given, timeout=60)

    def counted(self, line: str) -> float:
        """A figure of /metrics, by its line's beginning; 0 where it is not there yet."""
        found = [each for each in httpx.get(f"{self.url}/metrics").text.splitlines() if each.startswith(line + " ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="package")
def endpoint(served: Served):
    with listening(served) as found:
        yield found
