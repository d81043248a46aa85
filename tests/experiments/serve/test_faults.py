"""Requests of which a fifth are faulty, and a worker that is killed: each answer is right or says why.

`FAULTY_REQUESTS=1000` asks for more than the suite's.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from defection.experiments.serve.worker import Served

from .conftest import Endpoint, chat, listening, some_prompts

REQUESTS = int(os.environ.get("FAULTY_REQUESTS", "400"))
CLIENTS = 24
TOKENS = 6
PART = REQUESTS // 4
EVERY = 100
"""Requests between two deaths of the worker."""
FAULTS = ("hangs up", "malformed", "oversized", "too long", "unknown model", "sends half")
KINDS = ("whole",) * 16 + ("streamed",) * 8 + FAULTS
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


class Clients:
    """Ask as clients of all kinds do; `told` counts what came of it."""

    def __init__(self, endpoint: Endpoint, right: dict[str, str]) -> None:
        self.endpoint, self.right, self.told = endpoint, right, Counter[str]()
        self.http = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=CLIENTS))

    def ask(self, number: int) -> None:
        if number % EVERY == EVERY - 1:
            kill(self.endpoint)
        draw = random.Random(number)
        kind, said = draw.choice(KINDS), draw.choice(list(self.right))
        self.told[f"{kind}: {self.outcome(kind, said)}"] += 1

    def outcome(self, kind: str, said: str) -> str:
        body = {"messages": chat(said), "max_tokens": TOKENS}
        if kind == "whole":
            return self.judged(self.post(body), said)
        if kind == "streamed":
            return self.read(body, said)
        if kind == "hangs up":
            return self.break_off(body, whole=True)
        if kind == "sends half":
            return self.break_off(body, whole=False)
        content, status = {
            "malformed": (b'{"messages": [{"role": "user", ', 400),
            "oversized": (b'{"messages": "' + b"x" * (1 << 20) + b'"}', 413),
            "too long": ({"messages": chat("so " * 200)}, 400),
            "unknown model": ({**body, "model": "gpt-4"}, 404),
        }[kind]
        answer = self.post(content)
        assert answer.status_code == status, (kind, answer.text)
        return "refused" if answer.json()["error"]["message"] else "refused in silence"

    def post(self, content: object) -> httpx.Response:
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        given = {"content-type": "application/json"}
        return self.http.post(f"{self.endpoint.url}/v1/chat/completions", content=sent, headers=given)

    def judged(self, answer: httpx.Response, said: str) -> str:
        if answer.status_code == 200:
            return "right" if answer.json()["choices"][0]["message"]["content"] == self.right[said] else "wrong"
        assert answer.status_code in (500, 503), answer.text
        return excused(answer.json())

    def read(self, body: dict[str, object], said: str) -> str:
        text = ""
        with self.http.stream(
            "POST", f"{self.endpoint.url}/v1/chat/completions", json=body | {"stream": True}
        ) as answer:
            if answer.status_code != 200:
                answer.read()
                return self.judged(answer, said)
            for line in answer.iter_lines():
                if not line or line == "data: [DONE]":
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return excused(event)
                text += event["choices"][0]["delta"].get("content") or ""
        return "right" if text == self.right[said] else "wrong"

    def break_off(self, body: dict[str, object], *, whole: bool) -> str:
        content = json.dumps(body | {"max_tokens": 60, "stream": whole}).encode()
        with socket.create_connection(("127.0.0.1", int(self.endpoint.url.rsplit(":", 1)[1])), timeout=30) as line:
            line.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content[: None if whole else 20])
            if whole:
                line.recv(100)
        return "gone"


def excused(answer: dict[str, dict[str, str]]) -> str:
    sentence = answer["error"]["message"]
    assert "ask again" in sentence, sentence
    return "told to ask again"


def kill(endpoint: Endpoint) -> None:
    """An exception out of nowhere in the worker's thread, wherever it is."""
    thread = endpoint.server.worker._thread
    ident = ctypes.c_ulong((thread and thread.ident) or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))


def megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_with_faults_answers_are_right_or_say_why_and_nothing_is_left_behind(served: Served) -> None:
    limits = {"rows": 8, "waiting": 64, "seconds_to_send": 1.0}
    with listening(served, limits=limits) as endpoint:
        said = [prompt.messages[-1].content for prompt in some_prompts(8)]
        answers = {text: endpoint.post({"messages": chat(text), "max_tokens": TOKENS}).json() for text in said}
        clients = Clients(endpoint, {text: a["choices"][0]["message"]["content"] for text, a in answers.items()})
        held = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            for first in range(0, REQUESTS, 200):
                list(pool.map(clients.ask, range(first, first + 200)))
                held.append((megabytes(), threading.active_count()))
        deadline = time.monotonic() + 30
        while (endpoint.server.worker.speaking or endpoint.server.worker.waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert endpoint.server.worker.speaking == endpoint.server.worker.waiting == 0
        assert endpoint.post({"messages": chat(said[0]), "max_tokens": TOKENS}).status_code == 200
        assert httpx.get(f"{endpoint.url}/health").status_code == 200
    told = clients.told
    assert sum(told.values()) == REQUESTS
    assert not any(outcome.endswith(("wrong", "silence")) for outcome in told)
    assert told["whole: right"] + told["streamed: right"] > 0.6 * REQUESTS  # it did not get by with excuses
    assert told["whole: told to ask again"] + told["streamed: told to ask again"] > 0
    assert {f"{kind}: refused" for kind in FAULTS[1:5]} | {"hangs up: gone", "sends half: gone"} <= told.keys()
    assert held[-1][0] - held[1][0] < 16  # megabytes, over half the requests; it levels off
    assert held[-1][1] == held[1][1]
