"""The service without a socket: errors, keys, routes, habits."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest

from cached_session.emulator import ConversationStore, Habits, Request, Response, Service
from tests.emulator.api import user

KEY = {"Authorization": "Bearer key"}


def ask(service: Service, method: str, target: str, body: object = None) -> Response:
    encoded = b"" if body is None else json.dumps(body).encode()
    return service.handle(Request.parse(method, f"/v1{target}", KEY, encoded))


def conversation(service: Service, *texts: str) -> str:
    identifier: str = ask(service, "POST", "/conversations", {}).json()["id"]
    if texts:
        append(service, identifier, *[user(text) for text in texts])
    return identifier


def append(service: Service, identifier: str, *items: dict[str, Any]) -> Response:
    return ask(service, "POST", f"/conversations/{identifier}/items", {"items": list(items)})


def listing(service: Service, identifier: str, query: str = "order=asc") -> dict[str, Any]:
    body: dict[str, Any] = ask(service, "GET", f"/conversations/{identifier}/items?{query}").json()
    return body


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Bearer "}])
def test_no_key_is_401(headers: dict[str, str]) -> None:
    """A request without an API key is 401 with all four fields of the envelope."""
    answer = Service().handle(Request.parse("POST", "/v1/conversations", headers))
    assert answer.status == 401
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_header_names_have_no_case() -> None:
    """The key is found whatever the case of the header's name."""
    request = Request.parse("POST", "/v1/conversations", {"AUTHORIZATION": "bearer key"})
    assert Service().handle(request).status == 200


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "param", "code"),
    [
        ("GET", "/nothing", None, 404, None, None),
        ("PATCH", "/conversations", None, 405, None, "method_not_supported"),
        ("GET", "/conversations/conv_x", None, 404, None, None),
        ("POST", "/conversations", [], 400, None, None),
        ("POST", "/conversations", {"metadata": "x"}, 400, "metadata", "invalid_type"),
        ("POST", "/conversations", {"metadata": {"a": 1}}, 400, "metadata", "invalid_type"),
        (
            "POST",
            "/conversations",
            {"metadata": {str(number): "" for number in range(17)}},
            400,
            "metadata",
            "object_above_max_properties",
        ),
        (
            "POST",
            "/conversations",
            {"metadata": {"k" * 65: ""}},
            400,
            "metadata",
            "property_name_above_max_length",
        ),
        (
            "POST",
            "/conversations",
            {"metadata": {"k": "v" * 513}},
            400,
            "metadata",
            "string_above_max_length",
        ),
        (
            "POST",
            "/conversations",
            {"items": [{"type": "item_reference", "id": "msg_x"}]},
            404,
            "items",
            None,
        ),
    ],
)
def test_refusals(
    method: str, target: str, body: object, status: int, param: str | None, code: str | None
) -> None:
    """Each refusal names its parameter and its code, in the recorded envelope."""
    answer = ask(Service(), method, target, body)
    assert answer.status == status
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=101", "limit", "integer_above_max_value"),
        ("limit=ten", "limit", "invalid_type"),
        ("order=up", "order", "invalid_value"),
        ("include=x", "include", "invalid_value"),
        ("include[]=x", "include", "invalid_value"),
    ],
)
def test_refused_listings(query: str, param: str, code: str) -> None:
    """Each parameter of a listing that is out of bounds is 400 and named."""
    service = Service()
    error = listing(service, conversation(service, "x"), query)["error"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.parametrize("body", [{}, {"metadata": None}])
def test_update_needs_metadata(body: dict[str, Any]) -> None:
    """An update without metadata, or with null, is 400."""
    service = Service()
    assert ask(service, "POST", f"/conversations/{conversation(service)}", body).status == 400


def test_path_outside_the_api_is_404() -> None:
    """A path that does not begin with /v1 is 404, with a key and without."""
    assert Service().handle(Request.parse("GET", "/v2/conversations", KEY)).status == 404


def test_same_seed_same_bytes() -> None:
    """Two services with default stores answer the same requests with the same bytes."""

    def run() -> list[bytes]:
        service = Service(ConversationStore())
        identifier = conversation(service, "a", "b")
        path = f"/conversations/{identifier}/items?limit=1"
        return [identifier.encode(), ask(service, "GET", path).body]

    assert run() == run()


def test_items_are_a_copy() -> None:
    """Changing what `items` returned changes nothing in the store."""
    service = Service()
    identifier = conversation(service, "x")
    before = service.items(identifier)
    service.items(identifier)[0]["content"][0]["text"] = "changed"
    assert service.items(identifier) == before
    assert before == listing(service, identifier)["data"]


def test_requests_from_threads_are_handled_one_by_one() -> None:
    """Appends from several threads all arrive, each batch in one piece."""
    service = Service()
    identifier = conversation(service)

    def write(name: int) -> None:
        for _ in range(20):
            append(service, identifier, user(f"{name}"), user(f"{name}"), user(f"{name}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [item["content"][0]["text"] for item in service.items(identifier)]
    assert len(texts) == 240
    assert all(len(set(texts[start : start + 3])) == 1 for start in range(0, 240, 3))


# --- habits of other servers ---


def test_unknown_cursor_ignored() -> None:
    """With this habit a listing after an unknown id starts again at page one."""
    service = Service(habits=Habits(unknown_cursor_ignored=True))
    identifier = conversation(service, "a", "b")
    assert listing(service, identifier, "order=asc&after=msg_x") == listing(service, identifier)


def test_has_more_on_full_last_page() -> None:
    """With this habit a last page that is exactly full says that there is more."""
    service = Service(habits=Habits(has_more_on_full_last_page=True))
    identifier = conversation(service, "a", "b")
    assert listing(service, identifier, "limit=2")["has_more"] is True
    assert listing(service, identifier, "limit=3")["has_more"] is False
    last = listing(service, identifier)["last_id"]
    assert listing(service, identifier, f"order=asc&limit=2&after={last}") == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


def test_delete_missing_ok() -> None:
    """With this habit deleting an item that is not there answers the conversation."""
    service = Service(habits=Habits(delete_missing_ok=True))
    identifier = conversation(service, "a")
    answer = ask(service, "DELETE", f"/conversations/{identifier}/items/msg_x")
    assert (answer.status, answer.json()["id"]) == (200, identifier)
    assert ask(service, "DELETE", "/conversations/conv_x/items/msg_x").status == 404


def test_initial_items_dropped() -> None:
    """With this habit a conversation made with items is empty."""
    service = Service(habits=Habits(initial_items_dropped=True))
    made = ask(service, "POST", "/conversations", {"items": [user("a")]})
    assert made.status == 200
    assert listing(service, made.json()["id"])["data"] == []


def test_content_left_as_string() -> None:
    """With this habit string content is listed as the string that it was."""
    service = Service(habits=Habits(content_left_as_string=True))
    (item,) = listing(service, conversation(service, "text"))["data"]
    assert item["content"] == "text"


def test_empty_string_for_null() -> None:
    """With this habit the ids of an empty listing are empty strings."""
    service = Service(habits=Habits(empty_string_for_null=True))
    page = listing(service, conversation(service))
    assert (page["first_id"], page["last_id"]) == ("", "")


def test_ids_rewritten() -> None:
    """With this habit an id that the client sent is replaced, whatever it looks like."""
    service = Service(habits=Habits(ids_rewritten=True))
    identifier = conversation(service)
    append(service, identifier, user("a", id="msg_mine"), user("b", id="wrong_prefix"))
    ids = [item["id"] for item in listing(service, identifier)["data"]]
    assert all(item.startswith("msg_") for item in ids)
    assert "msg_mine" not in ids


@pytest.mark.parametrize(
    ("kind", "sent", "stored"),
    [
        ("nul", "a\0b", "ab"),
        ("crlf", "a\r\nb\rc", "a\nb\nc"),
        ("nfc", "e\u0301", "\u00e9"),
        ("trim", " a b\n", "a b"),
        ("redact", "to ann@example.com now", "to [redacted] now"),
        ("cut", "x" * 101, "x" * 100),
        ("nest", "a", {"value": "a"}),
        ("trim,nul", " a\0 ", "a"),
    ],
)
def test_rewriting_servers(kind: str, sent: str, stored: object) -> None:
    """With this habit texts are stored, answered and listed otherwise than they were sent."""
    service = Service(habits=Habits(rewrites=kind))
    identifier = conversation(service)
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": sent}]}
    answered = append(service, identifier, user(sent), thought).json()["data"]
    assert answered[0]["content"][0]["text"] == stored
    assert answered[1]["summary"][0]["text"] == stored
    assert listing(service, identifier)["data"] == answered


def test_smaller_pages() -> None:
    """With this habit a larger page is refused, in the words that the service has for its own."""
    service = Service(habits=Habits(largest_page=5))
    identifier = conversation(service, *"abcdef")
    refused = ask(service, "GET", f"/conversations/{identifier}/items?limit=6")
    assert refused.status == 400
    assert refused.json()["error"]["param"] == "limit"
    assert "<= 5" in refused.json()["error"]["message"]
    for query in ("", "limit=5"):
        page = listing(service, identifier, query)
        assert [item["content"][0]["text"] for item in page["data"]] == list("fedcb")
        assert page["has_more"]


def test_full_pages_that_deny_the_next() -> None:
    """With this habit a full page says that nothing follows, and a cursor shows that it does."""
    service = Service(habits=Habits(has_more_false_on_full_page=True))
    identifier = conversation(service, *"abc")
    page = listing(service, identifier, "order=asc&limit=2")
    assert (len(page["data"]), page["has_more"]) == (2, False)
    page = listing(service, identifier, f"order=asc&limit=2&after={page['last_id']}")
    assert [item["content"][0]["text"] for item in page["data"]] == ["c"]


def test_every_habit_is_off_by_default() -> None:
    """No habit is on unless it is asked for, and each can be asked for by name."""
    assert not any(getattr(Habits(), name) for name in Habits.names())
    for name in Habits.names():
        assert getattr(replace(Habits(), **{name: True}), name)
