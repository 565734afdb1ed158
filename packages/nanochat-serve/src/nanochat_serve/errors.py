"""What a request can be told instead of an answer, and the JSON of it."""

from __future__ import annotations

from typing import Any

from aiohttp import web


class RefusedError(Exception):
    """A request that is not answered: the HTTP status, a type for programs and a sentence for people."""

    def __init__(
        self, status: int, kind: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s

    def as_json(self) -> dict[str, Any]:
        """The body of the response, and the last `data:` line of a stream that had begun."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.kind}}

    def as_response(self) -> web.Response:
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.json_response(self.as_json(), status=self.status, headers=headers)


class InvalidRequestError(RefusedError, ValueError):
    """What is wrong with a request, and in which field."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(400, "invalid_request_error", f"{field}: {complaint}", param=field)
        self.field = field
        self.complaint = complaint


class ClientLeftError(Exception):
    """Nobody reads the answer any more."""
