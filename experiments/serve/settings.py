"""What a server allows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ...activations.basics.errors import DefectionError

LEAST_KEY = 16
"""Characters of an API key: fewer can be tried out."""


@dataclass(frozen=True)
class Limits:
    """Beyond these a request is refused, with a status and a sentence."""

    rows: int = 32
    """Replies that are made at once."""
    waiting: int = 64
    """Requests that wait for one of these; more are told to come back (503)."""
    prompt: int = 2048
    """Tokens of a conversation."""
    reply: int = 128
    """Tokens of a reply: as long as those that the alarm was set on."""
    body: int = 1 << 20
    """Bytes of a request (413)."""
    per_minute: int = 600
    """Requests of one client (429); 0: any number."""
    seconds_to_send: float = 10.0
    """For a request to arrive (408)."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_open(host: str, key: str | None) -> None:
    """DefectionError for an address that others reach without a key, and for a key that is soon guessed."""
    if key is not None and len(key) < LEAST_KEY:
        raise DefectionError(f"the API key is {len(key)} characters long; give one of at least {LEAST_KEY}")
    if key is None and not is_loopback(host):
        raise DefectionError(
            f"{host} can be reached from other machines: set an API key in DEFECTION_API_KEY, or serve on 127.0.0.1"
        )
