"""From a request and a decision to what happens: the change in the store and what the client sees.

Pure apart from the service that it is given. A transport, on sockets or in memory, only has to
perform the five sights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .faults import Fault, FaultKind
from .requests import first_items
from .service import Service
from .wire import ApiError, Request, Response, error_response, json_response

__all__ = ["NOT_JSON", "WRONG_SHAPES", "Outcome", "Sight", "carry_out"]


class Sight(StrEnum):
    """What the client sees."""

    ANSWER = "answer"
    """The response, after ``Outcome.delay`` seconds."""
    TRUNCATED = "truncated"
    """The response with all of its headers and the first ``Outcome.cut`` bytes of its body, then
    the end of the connection."""
    RESET = "reset"
    """The connection is reset without a byte of response."""
    SILENCE = "silence"
    """Nothing, until the client gives up."""
    REFUSED = "refused"
    """This connection is cut, idle ones are closed, and new ones are refused for
    ``Outcome.delay`` seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        sight: What the client sees.
        response: What is sent, for ANSWER and TRUNCATED; otherwise None.
        delay: Seconds, see the sights.
        cut: Bytes of the body that a truncated answer still carries.
        late: Seconds after which the caller has to give the request to ``Service.handle`` and
            drop the response, or None.
    """

    sight: Sight
    response: Response | None = None
    delay: float = 0.0
    cut: int = 0
    late: float | None = None

    @property
    def status(self) -> int | None:
        """HTTP status that the client sees, or None where it sees none."""
        return None if self.response is None else self.response.status


_RESET: Final = Outcome(Sight.RESET)

WRONG_SHAPES: Final[tuple[object, ...]] = (
    [],
    None,
    "ok",
    {},
    {"status": "maintenance"},
    {"object": "list"},
    {"object": "list", "data": None, "first_id": None, "last_id": None, "has_more": False},
    {"object": "list", "data": {}, "first_id": None, "last_id": None, "has_more": False},
    {"object": "list", "data": [None], "first_id": None, "last_id": None, "has_more": False},
    {"object": "list", "data": [{"type": "message"}], "has_more": "no"},
)
"""What a wrong_shape fault answers, by variant."""

NOT_JSON: Final = (
    (b"<html><body>502 Bad Gateway</body></html>", "text/html"),
    (b"<html><body>Please wait</body></html>", "application/json"),
    (b"", "application/json"),
    (b'{"object": "list", "data": [', "application/json"),
    (b"\xff\xfe\x00", "application/json"),
)
"""Body and media type that a not_json fault answers with, by variant."""


def carry_out(service: Service, request: Request, fault: Fault | None) -> Outcome:
    """Carries out a request as a fault has it.

    Args:
        service: Answers the request and holds what it changes.
        request: The request.
        fault: What goes wrong, or None.

    Returns:
        What the client sees, and what is still to be done.
    """
    if fault is None:
        return Outcome(Sight.ANSWER, service.handle(request))
    match fault.kind:
        case FaultKind.RESET_BEFORE_COMMIT:
            return _RESET
        case FaultKind.RESET_AFTER_COMMIT:
            service.handle(request)
            return _RESET
        case FaultKind.ERROR_BEFORE_COMMIT:
            return Outcome(Sight.ANSWER, _server_error(fault.status))
        case FaultKind.ERROR_AFTER_COMMIT:
            service.handle(request)
            return Outcome(Sight.ANSWER, _server_error(fault.status))
        case FaultKind.RATE_LIMITED:
            return Outcome(Sight.ANSWER, _rate_limited(fault.retry_after))
        case FaultKind.RATE_LIMITED_QUOTA:
            return Outcome(Sight.ANSWER, _no_quota())
        case FaultKind.LOCKED:
            return Outcome(Sight.ANSWER, _locked())
        case FaultKind.SLOW:
            return Outcome(Sight.ANSWER, service.handle(request), delay=fault.delay)
        case FaultKind.TRUNCATED:
            response = service.handle(request)
            return Outcome(Sight.TRUNCATED, response, cut=len(response.body) // 2)
        case FaultKind.NOT_JSON:
            service.handle(request)
            body, kind = NOT_JSON[fault.variant % len(NOT_JSON)]
            return Outcome(Sight.ANSWER, Response(200, body, {"content-type": kind}))
        case FaultKind.WRONG_SHAPE:
            service.handle(request)
            shape = WRONG_SHAPES[fault.variant % len(WRONG_SHAPES)]
            return Outcome(Sight.ANSWER, json_response(200, shape))
        case FaultKind.LATE_COMMIT:
            return Outcome(Sight.SILENCE if fault.silent else Sight.RESET, late=fault.delay)
        case FaultKind.PARTIAL_BATCH:
            service.handle(first_items(request, fault.items))
            return _RESET
        case FaultKind.CURSOR_REFUSED:
            after = request.parameter("after")
            error = ApiError(404, f"No item found with id '{after}'", param="after")
            return Outcome(Sight.ANSWER, error_response(error))
        case FaultKind.CURSOR_IGNORED:
            return Outcome(Sight.ANSWER, service.handle(request.without_parameter("after")))
        case FaultKind.REFUSED:
            return Outcome(Sight.REFUSED, delay=fault.delay)
        case FaultKind.HANG:
            return Outcome(Sight.SILENCE)


def _server_error(status: int) -> Response:
    message = "The server had an error while processing your request. Sorry about that!"
    return error_response(ApiError(status, message, kind="server_error"))


def _rate_limited(seconds: float) -> Response:
    # The client reads `retry-after-ms` first, then `retry-after` (measured).
    error = ApiError(
        429,
        "Rate limit reached. Please try again later.",
        kind="requests",
        code="rate_limit_exceeded",
    )
    headers = {"retry-after": f"{seconds:.3f}", "retry-after-ms": f"{seconds * 1000:.0f}"}
    return error_response(error, headers)


def _no_quota() -> Response:
    # No Retry-After: it is left out where the user has to act (help pages).
    error = ApiError(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        kind="insufficient_quota",
        code="insufficient_quota",
    )
    return error_response(error)


def _locked() -> Response:
    # Words and fields as in public reports.
    error = ApiError(
        400,
        "Another process is currently operating on this conversation. Please retry in a few "
        "seconds.",
        param="conversation",
        code="conversation_locked",
    )
    return error_response(error)
