"""The endpoint: OpenAI's chat completions with the probe's scores in them, and the page that shows them arrive."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json
from ...activations.prompts.rendered import rendered
from ...probes.monitoring.setup import decoding_differences
from .answers import LAST_LINE, Answering, line
from .asked import ChatRequest, parse_request, prompt_of
from .guarding import HEADERS, Guarded, body_of, refuse_stranger
from .listening import HungUp, Inbox, while_there
from .metrics import CONTENT_TYPE, Counting, Metrics
from .rates import Rates
from .refusals import Refusal, error_body
from .rows import Ask, End, Event, Failure, Token
from .settings import Limits
from .worker import Full, Worker

PAGE = {"": ("html", "text/html"), "watch.css": ("css", "text/css"), "watch.js": ("js", "text/javascript")}
HUNG_UP = 499
"""What nginx calls a client that did not wait; nobody reads it."""


@dataclass
class Server:
    """All that the endpoint needs."""

    name: str
    """What the model is called in requests."""
    worker: Worker
    metrics: Metrics
    decoding: Json
    """How replies are made where a request does not say."""
    limits: Limits = field(default_factory=Limits)
    key: str | None = None
    host: str = "127.0.0.1"
    about: Json = field(default_factory=dict)
    """What else `/v1/models` says of probe and alarm."""

    def __post_init__(self) -> None:
        self.rates = Rates(self.limits.per_minute)
        self.spelling = threading.Lock()
        """A tokenizer writes one prompt at a time."""

    @property
    def models(self) -> Json:
        """The one that is served; its `defection` is what the page tells of it."""
        served = self.worker.served
        alarm = {
            "aggregator": served.alarm.aggregator.name,
            "threshold": served.alarm.threshold,
            "rate": served.alarm.rate,
            "clean": served.alarm.clean,
            "stops": served.stops,
        }
        limits = {"prompt": self.limits.prompt, "reply": self.limits.reply}
        told = {"alarm": alarm, "decoding": self.decoding, "limits": limits, **self.about}
        return {
            "object": "list",
            "data": [{"id": self.name, "object": "model", "created": 0, "owned_by": "local", "defection": told}],
        }

    def admit(self, request: Request) -> None:
        """`Refusal` for whoever may not ask, or has asked too often (429)."""
        client = request.client.host if request.client else ""
        if wait := self.rates.wait(client):
            raise Refusal(
                429,
                f"more than {self.limits.per_minute} requests a minute; ask again in {wait:.1f} seconds",
                code="rate_limit_exceeded",
                retry=wait,
            )
        refuse_stranger(request, self.key, self.host)

    def ask(self, request: ChatRequest, inbox: Inbox) -> tuple[Ask, Answering]:
        """What is asked of the worker, and how it will be answered; `Refusal` (400, 404) for what it cannot do."""
        if request.model not in (None, self.name):
            raise Refusal(404, f"there is no model {request.model!r} here, only {self.name!r}", code="model_not_found")
        tokens = self.limits.reply if request.longest is None else request.longest
        if tokens > self.limits.reply:
            raise Refusal(
                400, f"a reply may be {self.limits.reply} tokens long, not {tokens}: the alarm was set on such ones"
            )
        served, decoding = self.worker.served, request.decoding(self.decoding)
        with self.spelling:
            try:
                prompt = prompt_of(request, served.model.tokenizer)
                (row,) = rendered(served.model, [prompt])
            except DefectionError as error:
                raise Refusal(400, str(error)) from error
        if len(row.ids) > self.limits.prompt:
            raise Refusal(
                400,
                f"the conversation is {len(row.ids)} tokens long, and may be {self.limits.prompt}",
                code="context_length_exceeded",
            )
        doubts = decoding_differences(served.alarm.setup.decoding, decoding) if served.alarm.setup else []
        ask = Ask(row.ids, decoding, tokens, inbox, request.stops, request.seed)
        return ask, Answering(self.name, served.alarm.threshold, doubts, len(row.ids))


def make_app(server: Server) -> FastAPI:
    """The application; its lifespan ends the worker's."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def mending() -> None:
            while True:
                await asyncio.sleep(1)
                server.worker.mend()

        task = asyncio.create_task(mending())
        yield
        task.cancel()
        await asyncio.to_thread(server.worker.close)

    app = FastAPI(title="defection", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guarded)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        if request.url.path == "/v1/chat/completions":
            server.metrics.replies.labels(f"refused_{refusal.status}").inc()
        headers = {"retry-after": str(max(1, round(refusal.retry)))} if refusal.retry else {}
        return JSONResponse(refusal.body, refusal.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(error.status_code, said), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # Whoever is `Guarded` has been left by the time this is answered.
        return JSONResponse(error_body(500, "something broke here that is no fault of the request's"), 500, HEADERS)

    @app.get("/health")
    async def health() -> Response:
        well, worker = server.worker.is_well, server.worker
        told = {"status": "ok" if well else "ill", "speaking": worker.speaking, "waiting": worker.waiting}
        return JSONResponse(told | {"failures": worker.failures}, 200 if well else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        refuse_stranger(request, server.key, server.host)
        server.metrics.speaking.set(server.worker.speaking)
        server.metrics.waiting.set(server.worker.waiting)
        return Response(server.metrics.page(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models(request: Request) -> Json:
        server.admit(request)
        return server.models

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        server.admit(request)
        try:
            return await _complete(server, request)
        except (HungUp, ClientDisconnect):
            server.metrics.replies.labels("hung_up").inc()
            return Response(status_code=HUNG_UP)

    for path, (suffix, kind) in PAGE.items():
        content = (Path(__file__).parent / "templates" / f"watch.{suffix}").read_bytes()

        def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.get(f"/{path}")(page)
    return app


async def _complete(server: Server, request: Request) -> Response:
    asked = parse_request(await body_of(request, server.limits.body, server.limits.seconds_to_send))
    inbox = Inbox()
    ask, answering = await asyncio.to_thread(server.ask, asked, inbox)
    counting = Counting(server.metrics, len(ask.ids))
    try:
        server.worker.submit(ask)
    except Full:
        raise Refusal(503, f"{server.limits.waiting} requests wait already; ask again", code="busy", retry=1) from None
    except DefectionError as error:
        raise Refusal(503, str(error)) from error
    events = inbox.events(ask)
    try:
        # Until there is something to say, a failure can still be a status.
        first = _sound(await while_there(request, anext(events)))
        counting.saw(first)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            lines = _lines(first, events, answering, counting, usage=usage)
            return StreamingResponse(lines, media_type="text/event-stream")
        return JSONResponse(await while_there(request, _whole(first, events, answering, counting)))
    except BaseException:
        await events.aclose()
        raise


def _sound(event: Event) -> Token | End:
    if isinstance(event, Failure):
        raise Refusal(500 if event.fault else 503, event.sentence, code="worker_failed", retry=1)
    return event


async def _whole(first: Token | End, events: AsyncGenerator[Event], answering: Answering, counting: Counting) -> Json:
    told = [first]
    async for event in events:
        told.append(_sound(event))
        counting.saw(told[-1])
    tokens = [each for each in told if isinstance(each, Token)]
    (end,) = (each for each in told if isinstance(each, End))
    return answering.whole(tokens, end)


async def _lines(
    first: Token | End, events: AsyncGenerator[Event], answering: Answering, counting: Counting, *, usage: bool
) -> AsyncIterator[bytes]:
    """The stream's events; a failure on the way is its last."""
    try:
        yield line(answering.chunk(first))
        async for event in events:
            if isinstance(event, Failure):
                counting.ended("failed")
                yield line(error_body(500 if event.fault else 503, event.sentence, "worker_failed"))
                return
            counting.saw(event)
            yield line(answering.chunk(event))
            if isinstance(event, End) and usage:
                yield line(answering.usage_chunk(event))
        yield LAST_LINE
    finally:
        counting.ended("hung_up")  # unless it has ended otherwise
        await events.aclose()
