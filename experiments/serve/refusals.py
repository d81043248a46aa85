"""A request that is not answered: its status, the reason in a sentence, and OpenAI's way to write both."""

from __future__ import annotations

from ...activations.basics.files import Json

KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """Raised wherever a request turns out not to be answered."""

    def __init__(
        self, status: int, sentence: str, *, code: str | None = None, param: str | None = None, retry: float = 0.0
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.code, self.param = status, sentence, code, param
        self.retry = retry
        """Seconds after which asking again may help; 0 where it will not."""

    @property
    def body(self) -> Json:
        """As OpenAI's clients read it."""
        return error_body(self.status, self.sentence, self.code, self.param)


def error_body(status: int, sentence: str, code: str | None = None, param: str | None = None) -> Json:
    """The body of an answer that is an error."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": sentence, "type": kind, "param": param, "code": code}}
