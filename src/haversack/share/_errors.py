"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from haversack.core.errors import HaversackError, UserError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout",
}


class ApiError(HaversackError):
    """A request that is not answered: HTTP status, one sentence, the field and a code programs know."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: UserError) -> ApiError:
        """A mistake that deeper code found in what was asked."""
        return cls(400, str(error), param=error.field, code="invalid_value")

    def record(self) -> dict[str, Any]:
        """The body."""
        kind = _TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The body as JSON."""
        return msgspec.json.encode(self.record())


def busy(sentence: str, seconds: int = 1) -> ApiError:
    """The queue is full: come back in `seconds`."""
    return ApiError(429, sentence, code="queue_full", headers={"Retry-After": str(seconds)})


def stopping() -> ApiError:
    """The server takes no more."""
    return ApiError(503, "the server is stopping.", code="stopping", headers={"Retry-After": "5"})
