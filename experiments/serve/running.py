"""From a model, its probe and a calibration to a server that listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace

import uvicorn

from ...activations import DefectionError, Model
from ...probes import Calibration, Probe
from ..run.monitoring import MonitorSettings
from .app import Server, make_app
from .metrics import Metrics
from .settings import Limits
from .worker import Served, Worker

CONNECTIONS = 1024
"""Open at once; more are turned away unheard."""
GRACE = 3
"""Seconds that replies may still take at the end."""


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address; DefectionError where it is taken, not this machine's, or forbidden."""
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            opened = stack.enter_context(socket.socket(family, kind, protocol))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen()  # whoever asks between the printed address and the first answer waits, and is not refused
        except OSError as error:
            raise DefectionError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error
        yield opened


def server_of(
    name: str,
    model: Model,
    probe: Probe,
    calibration: Calibration,
    how: MonitorSettings,
    limits: Limits,
    key: str | None = None,
    host: str = "127.0.0.1",
) -> Server:
    """What `make_app` needs; DefectionError for a calibration of shorter replies than are allowed."""
    alarm = calibration.alarm(how.aggregator, how.rate)
    decoding = calibration.setup.decoding
    if limits.reply > decoding["max_new_tokens"]:
        raise DefectionError(
            f"the alarm was set on replies of up to {decoding['max_new_tokens']} tokens, not {limits.reply}: "
            "allow shorter ones by --reply, or calibrate anew"
        )
    room = model.context_length - limits.reply + 1
    if room < 1:
        raise DefectionError(
            f"{model.identity.name} takes at most {model.context_length} tokens, which leaves no room for a prompt "
            f"before a reply of {limits.reply}; allow shorter ones by --reply"
        )
    metrics = Metrics()
    worker = Worker(
        Served(model, probe, alarm, stops=how.on_alarm == "stop"),
        rows=limits.rows,
        waiting=limits.waiting,
        observer=metrics,
    )
    about = {
        "probe": {"estimator": probe.estimator, "layers": list(probe.fixed_layers), "saw": probe.saw},
        "numbers": calibration.setup.numbers,
    }
    fitting = replace(limits, prompt=min(limits.prompt, room))
    return Server(name, worker, metrics, decoding, fitting, key, host, about)


def configured(server: Server) -> uvicorn.Config:
    """How it is served; connections are kept for longer than clients keep them, or both would close one at a time."""
    return uvicorn.Config(
        make_app(server),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
    )


def run(server: Server, opened: socket.socket) -> None:
    """Serve at a bound socket until interrupted."""
    uvicorn.Server(configured(server)).run(sockets=[opened])
