"""What goes in and what comes out: requests, responses and errors as plain values.

The service works on these alone. Sockets, ASGI and in-memory transports translate to them, so one
service serves all three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

__all__ = ["API_ROOT", "ApiError", "Request", "Response", "error_response", "json_response"]

API_ROOT: Final = "/v1"
"""Prefix of every path that the server answers."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    Attributes:
        method: HTTP method in capitals.
        path: Decoded path without the query, for instance ``/v1/conversations``.
        query: Decoded query pairs in the order in which they were sent.
        headers: Header fields; names are looked up without regard to case.
        body: Body as it was sent, empty where there was none.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def parse(
        cls, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Request:
        """Builds a request from a target such as ``/v1/conversations/conv_1/items?limit=2``."""
        path, _, query = target.partition("?")
        pairs = tuple(parse_qsl(query, keep_blank_values=True))
        return cls(method.upper(), unquote(path), pairs, dict(headers or {}), body)

    def header(self, name: str) -> str | None:
        """Returns a header field, or None where it was not sent."""
        wanted = name.lower()
        for key, value in self.headers.items():
            if key.lower() == wanted:
                return value
        return None

    def parameter(self, name: str) -> str | None:
        """Returns the last value of a query parameter, or None where it was not sent."""
        value = None
        for key, text in self.query:
            if key == name:
                value = text
        return value

    def without_parameter(self, name: str) -> Request:
        """Returns the same request without one query parameter."""
        return replace(self, query=tuple(pair for pair in self.query if pair[0] != name))

    def segments(self) -> tuple[str, ...] | None:
        """Returns the path below ``/v1`` in its parts, or None for a path outside it."""
        head, *rest = self.path.strip("/").split("/")
        if f"/{head}" != API_ROOT:
            return None
        return tuple(rest)


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response.

    Attributes:
        status: HTTP status.
        body: Body, whole.
        headers: Header fields, names in small letters. The length is left to whoever sends it.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Returns the decoded body.

        Raises:
            ValueError: The body is not JSON.
        """
        return json.loads(self.body)


class ApiError(Exception):
    """A refusal, in the four fields of the error envelope.

    Attributes:
        status: HTTP status of the answer.
        message: Sentence for people.
        param: Request parameter at fault, or None.
        code: Word for programs, or None.
        kind: The envelope's ``type``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind


def json_response(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    """Builds a response with a JSON body."""
    try:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # JSON can carry half of a surrogate pair, as an escape; UTF-8 cannot.
        body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, body, {"content-type": "application/json", **(headers or {})})


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Builds the answer for a refusal: ``{"error": {message, type, param, code}}`` (recorded)."""
    envelope = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.code,
    }
    return json_response(error.status, {"error": envelope}, headers)
