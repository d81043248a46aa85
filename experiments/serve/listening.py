"""From the worker's thread to a request's coroutine, and the news that its client is gone back to the worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar

from fastapi import Request

from .rows import Ask, Event, Token

Found = TypeVar("Found")


class HungUp(Exception):
    """Nobody waits for the answer any more."""


class Inbox:
    """Takes a request's events on the worker's thread; they are read in the loop that made it."""

    def __init__(self) -> None:
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def __call__(self, event: Event) -> None:
        """Called on the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is gone
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self, ask: Ask) -> AsyncGenerator[Event]:
        """All of a request's events; whoever leaves off before the end has hung up."""
        try:
            while True:
                event = await self._events.get()
                yield event
                if not isinstance(event, Token):
                    return
        finally:
            ask.hung_up.set()


async def while_there(request: Request, answer: Awaitable[Found]) -> Found:
    """Wait for an answer as long as the client does; `HungUp` when that hangs up. The body must have been read."""
    task, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HungUp
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await each


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
