"""What a client asks for, in OpenAI's words, and what is asked of the model then. Nothing else is understood."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from ...activations.basics.files import Json
from ...activations.prompts.prompts import Message, Prompt
from ...probes.monitoring.setup import COLDEST
from .refusals import Refusal

Fraction = Annotated[float, Field(gt=0, le=1)]
Stop = Annotated[str, Field(min_length=1, max_length=64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Part(_Strict):
    """A part of a message's content; pictures and sounds are not heard."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        """What is said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Strict):
    """See OpenAI's reference."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """The body of a request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Not OpenAI's; `extra_body` of its client."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    """This and the next two change nothing."""
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the reply."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        """The longest reply that is wanted."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def decoding(self, usual: Json) -> Json:
        """How tokens are chosen: as the server does, or as the request says."""
        asked = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return usual
        if given.get("temperature", 1.0) < COLDEST:
            return {name: value for name, value in usual.items() if name in GREEDY} | {"do_sample": False}
        return {**SAMPLING, **usual, **given, "do_sample": True}


GREEDY = ("num_beams", "repetition_penalty", "no_repeat_ngram_size", "max_new_tokens")
"""What decides of a greedy reply."""
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
"""What sampling is where a request asks for some of it, and the server's own replies are greedy."""


ALTERNATIVES = ("str", "list[Part]", "constrained-str", "list[constrained-str]")
"""What pydantic calls a text and a list in the place of an error, where either may stand."""


def parse_request(body: bytes) -> ChatRequest:
    """Read a request's body; `Refusal` (400) names the first thing that is wrong, and where."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        first = found[0]
        if first["loc"] and first["loc"][-1] in ALTERNATIVES:
            # Of what may be a text or a list, both are told to be wrong: the one that was tried furthest was meant.
            place = first["loc"][:-1]
            alike = (each for each in found if each["loc"][: len(place)] == place)
            first = max(alike, key=lambda each: len(each["loc"]))
        where = ".".join(str(part) for part in first["loc"] if part not in ALTERNATIVES)
        raise Refusal(400, f"{where + ': ' if where else ''}{first['msg']}", param=where or None) from error


def prompt_of(request: ChatRequest, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """The conversation; `Refusal` where it does not end with the user, or holds what only a template may write."""
    if request.messages[-1].role != "user":
        raise Refusal(400, "the last message must be the user's", param="messages")
    marks = [str(mark) for mark in tokenizer.added_tokens_decoder.values() if mark.special]
    for number, message in enumerate(request.messages):
        forged = next((mark for mark in marks if mark in message.text), None)
        if forged is not None:
            raise Refusal(
                400,
                f"message {number} holds {forged!r}, by which the chat template marks turns; nobody may say it",
                param=f"messages.{number}",
            )
    roles = {"developer": "system"}
    turns = [Message(roles.get(m.role, m.role), m.text) for m in request.messages]  # type: ignore[arg-type]
    return Prompt("request", tuple(turns))
