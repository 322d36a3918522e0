"""Errors as OpenAI's interface tells them: ``{"error": {"message", "type", "param", "code"}}`` and an HTTP status."""

from __future__ import annotations

from typing import Any

from starlette.requests import ClientDisconnect

from ..adapters.errors import BatchRefused, RequestRefused, SafetykitError, TooLong, UsageError
from .rows import Broken, Busy, Draining, TimedOut

_GONE = 499
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """What a client is told.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, such as ``messages.0.content``; None where it is no field.
        code: a word that programs know the error by.
        retry_after: seconds.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, beside those of every answer."""
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}


def gone() -> ApiError:
    """What logs call a request whose client left; nobody reads it."""
    return ApiError(_GONE, "The client left.", code="client_left")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any error; of one that is nobody's word, nothing but that it happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientDisconnect):
        return gone()
    if isinstance(error, Busy):
        return ApiError(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, Draining):
        return ApiError(503, str(error), code="shutting_down", retry_after=1)
    if isinstance(error, Broken):
        return ApiError(503, str(error), code="broken", retry_after=1)
    if isinstance(error, TimedOut):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, (RequestRefused, BatchRefused)):
        error = next(iter(error.refused.values())).reason
    if isinstance(error, TooLong):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UsageError):  # not `invalid_prompt`, which evaluation harnesses count as a refusal
        return ApiError(400, str(error), param="messages", code="invalid_value")
    if isinstance(error, SafetykitError):
        return ApiError(500, str(error), code=type(error).__name__)
    return ApiError(500, "The server failed to answer; its log says why.", code="internal_error")
