"""Before every request and behind every answer: who may ask, how much may be sent, what a browser may do."""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import Refusal

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""A browser runs our script alone, loads nothing from elsewhere, and shows the page in nobody's frame."""
LOCAL = ("localhost", "127.0.0.1", "::1")


class Guarded:
    """An application whose every answer has these headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            await send(message)

        await self.app(scope, receive, sending)


def refuse_stranger(request: Request, key: str | None, host: str) -> None:
    """`Refusal` without the key, where there is one (401); otherwise for a page of elsewhere that asks under its name.

    A name that leads to this machine only while a page is open (DNS rebinding) would make that page one of ours.
    """
    if key is not None:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {key}".encode()):  # headers are bytes
            raise Refusal(401, "give the server's API key: Authorization: Bearer KEY", code="invalid_api_key")
        return
    try:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:  # no address at all, such as "["
        named = None
    if named not in (*LOCAL, host):
        raise Refusal(403, f"this server is not called {named!r}; ask it as 127.0.0.1 or localhost")


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """A request's body; `Refusal` for one that is no JSON by its own account (415), too large (413) or slow (408)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send JSON, with the header Content-Type: application/json")
    said = request.headers.get("content-length", "")
    too_large = Refusal(413, f"a request may be {most} bytes long")
    if said.isdecimal() and int(said) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {seconds:g} seconds") from None
    return bytes(body)
