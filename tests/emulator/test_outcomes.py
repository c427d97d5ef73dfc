"""What becomes of a request under each kind of fault, without a socket."""

from __future__ import annotations

import json

import pytest

from cached_session.emulator import Fault, FaultKind, Outcome, Service, Sight, carry_out
from cached_session.emulator.outcomes import NOT_JSON, WRONG_SHAPES
from tests.emulator.messages import CREATE, append_to, listing_of

COMMITTED_AFTER_ALL = {
    FaultKind.RESET_AFTER_COMMIT,
    FaultKind.ERROR_AFTER_COMMIT,
    FaultKind.SLOW,
    FaultKind.TRUNCATED,
    FaultKind.NOT_JSON,
    FaultKind.WRONG_SHAPE,
}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def conversation(service: Service) -> str:
    identifier: str = service.handle(CREATE).json()["id"]
    return identifier


def texts(service: Service, conversation: str) -> list[str]:
    return [item["content"][0]["text"] for item in service.items(conversation)]


@pytest.mark.parametrize("kind", FaultKind)
def test_what_the_store_holds_after_an_append(
    service: Service, conversation: str, kind: FaultKind
) -> None:
    """An append is carried out whole, in part, later or not at all, as its fault says."""
    outcome = carry_out(service, append_to(conversation), Fault(kind, items=2))
    if kind in COMMITTED_AFTER_ALL:
        assert texts(service, conversation) == ["a", "b", "c"]
    elif kind is FaultKind.PARTIAL_BATCH:
        assert texts(service, conversation) == ["a", "b"]
    elif kind in (FaultKind.CURSOR_IGNORED, FaultKind.CURSOR_REFUSED):
        return  # neither befalls an append
    else:
        assert texts(service, conversation) == []
    assert (outcome.late is not None) == (kind is FaultKind.LATE_COMMIT)


@pytest.mark.parametrize("kind", FaultKind)
def test_response_and_sight_go_together(
    service: Service, conversation: str, kind: FaultKind
) -> None:
    """There is a response exactly where the client sees one, in whole or in part."""
    outcome = carry_out(service, append_to(conversation), Fault(kind))
    seen = outcome.sight in (Sight.ANSWER, Sight.TRUNCATED)
    assert (outcome.response is not None) == seen
    assert (outcome.status is not None) == seen


def test_no_fault_is_the_answer(service: Service, conversation: str) -> None:
    """Without a fault the client sees the service's own answer at once."""
    outcome = carry_out(service, append_to(conversation), None)
    assert outcome.response is not None
    assert outcome == Outcome(Sight.ANSWER, outcome.response)
    assert outcome.response.json()["data"] == service.items(conversation)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault(FaultKind.ERROR_BEFORE_COMMIT, status=503), 503, None),
        (Fault(FaultKind.ERROR_AFTER_COMMIT, status=502), 502, None),
        (Fault(FaultKind.RATE_LIMITED), 429, "rate_limit_exceeded"),
        (Fault(FaultKind.RATE_LIMITED_QUOTA), 429, "insufficient_quota"),
        (Fault(FaultKind.LOCKED), 400, "conversation_locked"),
    ],
)
def test_error_answers(
    service: Service, conversation: str, fault: Fault, status: int, code: str | None
) -> None:
    """Error answers carry their status and their code in the envelope."""
    response = carry_out(service, append_to(conversation), fault).response
    assert response is not None
    error = response.json()["error"]
    assert (response.status, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_rate_limit_says_when_quota_does_not(service: Service) -> None:
    """A rate limit says when to come back, in both headers; an empty quota says nothing."""
    limited = carry_out(service, CREATE, Fault(FaultKind.RATE_LIMITED, retry_after=1.5)).response
    quota = carry_out(service, CREATE, Fault(FaultKind.RATE_LIMITED_QUOTA)).response
    assert limited is not None
    assert quota is not None
    assert (limited.headers["retry-after"], limited.headers["retry-after-ms"]) == ("1.500", "1500")
    assert not {"retry-after", "retry-after-ms"} & set(quota.headers)


def test_locked_is_as_reported(service: Service) -> None:
    """A locked conversation is 400 with the words of the public reports."""
    response = carry_out(service, CREATE, Fault(FaultKind.LOCKED)).response
    assert response is not None
    assert response.json() == {
        "error": {
            "message": "Another process is currently operating on this conversation. Please "
            "retry in a few seconds.",
            "type": "invalid_request_error",
            "param": "conversation",
            "code": "conversation_locked",
        }
    }


def test_late_commit_can_be_handled_later(service: Service, conversation: str) -> None:
    """A late request is the caller's to hand in again, whole."""
    for silent, sight in ((False, Sight.RESET), (True, Sight.SILENCE)):
        fault = Fault(FaultKind.LATE_COMMIT, delay=2.5, silent=silent)
        outcome = carry_out(service, append_to(conversation), fault)
        assert outcome == Outcome(sight, late=2.5)
    assert texts(service, conversation) == []


def test_cursor_faults(service: Service, conversation: str) -> None:
    """A known cursor is refused as an unknown one is, or the listing starts at page one."""
    service.handle(append_to(conversation))
    first = service.items(conversation)[0]["id"]
    request = listing_of(conversation, f"order=asc&after={first}")
    refused = carry_out(service, request, Fault(FaultKind.CURSOR_REFUSED)).response
    ignored = carry_out(service, request, Fault(FaultKind.CURSOR_IGNORED)).response
    unknown = service.handle(listing_of(conversation, "after=msg_x"))
    assert refused is not None
    assert ignored is not None
    assert refused.status == 404
    assert refused.body.replace(first.encode(), b"msg_x") == unknown.body
    assert ignored.json() == service.handle(listing_of(conversation)).json()


def test_truncated_answer_is_shorter_than_its_body(service: Service, conversation: str) -> None:
    """A truncated answer breaks off inside its body."""
    outcome = carry_out(service, append_to(conversation), Fault(FaultKind.TRUNCATED))
    assert outcome.response is not None
    assert 0 < outcome.cut < len(outcome.response.body)


@pytest.mark.parametrize("variant", range(len(NOT_JSON)))
def test_bodies_that_are_not_json(service: Service, variant: int) -> None:
    """Every variant of this fault answers 200 with a body that does not decode."""
    response = carry_out(service, CREATE, Fault(FaultKind.NOT_JSON, variant=variant)).response
    assert response is not None
    assert response.status == 200
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        response.json()


@pytest.mark.parametrize("variant", range(len(WRONG_SHAPES)))
def test_bodies_of_another_shape(service: Service, conversation: str, variant: int) -> None:
    """Every variant of this fault answers 200 with JSON that no endpoint would answer."""
    fault = Fault(FaultKind.WRONG_SHAPE, variant=variant)
    response = carry_out(service, append_to(conversation), fault).response
    assert response is not None
    shape = response.json()
    assert response.status == 200
    assert not (
        isinstance(shape, dict)
        and isinstance(shape.get("data"), list)
        and all(isinstance(item, dict) and "id" in item for item in shape["data"])
    )
