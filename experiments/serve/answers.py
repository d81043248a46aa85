"""OpenAI's objects, with what the probe says of each token beside its text; its own client keeps both."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ...activations.basics.files import Json
from .rows import End, Token

FINISHED = {"stop": "stop", "length": "length", "alarm": "content_filter"}
"""Of each way to end, OpenAI's word."""
LAST_LINE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Answering:
    """Writes the answer to one request."""

    model: str
    threshold: float
    doubts: Sequence[str]
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, tokens: Sequence[Token], end: End) -> Json:
        """The answer to a request that is not streamed."""
        text = "".join(token.text for token in tokens) + end.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": FINISHED[end.reason],
            "logprobs": None,
            "defection": {"tokens": [_read(token) | {"text": token.text} for token in tokens], **self._verdict(end)},
        }
        return self._object("chat.completion", [choice]) | {"usage": self._usage(end)}

    def chunk(self, event: Token | End) -> Json:
        """One event of a stream."""
        delta: Json = {"role": "assistant"} if isinstance(event, Token) and not event.place else {}
        choice = {
            "index": 0,
            "delta": delta | ({"content": event.text} if isinstance(event, Token) or event.text else {}),
            "finish_reason": None if isinstance(event, Token) else FINISHED[event.reason],
            "logprobs": None,
            "defection": _read(event) if isinstance(event, Token) else self._verdict(event),
        }
        return self._object("chat.completion.chunk", [choice])

    def usage_chunk(self, end: End) -> Json:
        """The last one, where the client asked what it used."""
        return self._object("chat.completion.chunk", []) | {"usage": self._usage(end)}

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _verdict(self, end: End) -> Json:
        return {
            "alarm": end.alarm,
            "stopped": end.reason == "alarm",
            "threshold": self.threshold,
            "doubts": list(self.doubts),
        }

    def _usage(self, end: End) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": end.tokens,
            "total_tokens": self.prompt_tokens + end.tokens,
        }


def _read(token: Token) -> Json:
    found = asdict(token)
    del found["text"]
    return {"token": found.pop("place"), **found}


def line(content: Json) -> bytes:
    """An event of a stream, as it is sent."""
    return b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
