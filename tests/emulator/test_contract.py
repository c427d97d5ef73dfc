"""One contract, two servers: the emulator and `agentic-api`, which others wrote.

Every row of the table of endpoints has its test here, in `test_contract_listing` or in
`test_contract_ids`. Where
`agentic-api` is known to differ, the case says so with the reason, and fails if it stops differing.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.api import Api, text_of, user
from tests.emulator.contract import on_both

CALL = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "done"}


# --- create, retrieve, update, delete a conversation ---


@on_both()
def test_create_answers_without_items(api: Api) -> None:
    """A new conversation answers id, object, created_at and metadata, and keeps its items."""
    answer = api.call(
        "POST", "/conversations", {"items": [user("hi")], "metadata": {"topic": "test"}}
    )
    assert answer.status == 200
    assert set(answer.body) == {"id", "object", "created_at", "metadata"}
    assert answer.body["id"].startswith("conv_")
    assert answer.body["object"] == "conversation"
    assert isinstance(answer.body["created_at"], int)
    assert answer.body["metadata"] == {"topic": "test"}
    assert api.texts(answer.body["id"]) == ["hi"]


@on_both()
def test_create_takes_twenty_items(api: Api) -> None:
    """A conversation may begin with 20 items, not with 21."""
    twenty = [user(str(number)) for number in range(20)]
    answer = api.call("POST", "/conversations", {"items": twenty})
    assert answer.status == 200
    assert len(api.list(answer.body["id"]).body["data"]) == 20
    assert api.call("POST", "/conversations", {"items": [*twenty, user("20")]}).status == 400


@on_both()
@pytest.mark.parametrize("raw", [b"", b"{}", b'{"items": null, "metadata": null}'])
def test_create_needs_nothing(api: Api, raw: bytes) -> None:
    """A conversation is made from an empty object, from nulls, and from no body at all."""
    answer = api.call("POST", "/conversations", raw=raw)
    assert answer.status == 200
    assert answer.body["metadata"] == {}
    assert api.list(answer.body["id"]).body["data"] == []


@on_both()
def test_retrieve_and_update_conversation(api: Api) -> None:
    """A conversation reads as it was made, and its metadata can be set anew."""
    made = api.call("POST", "/conversations", {"metadata": {"a": "1"}}).body
    path = f"/conversations/{made['id']}"
    assert api.call("GET", path).body == made
    updated = api.call("POST", path, {"metadata": {"a": "2", "b": "3"}})
    assert (updated.status, updated.body) == (200, made | {"metadata": {"a": "2", "b": "3"}})
    assert api.call("GET", path).body == updated.body
    assert api.call("POST", path, {}).status == 400
    assert api.call("POST", path, {"metadata": {"a": 1}}).status == 400


@on_both()
def test_delete_conversation(api: Api) -> None:
    """A deleted conversation answers so once, and 404 everywhere after that."""
    conversation = api.conversation("one")
    path = f"/conversations/{conversation}"
    answer = api.call("DELETE", path)
    assert answer.status == 200
    assert answer.body == {
        "id": conversation,
        "object": "conversation.deleted",
        "deleted": True,
    }
    assert api.call("DELETE", path).status == 404
    assert api.call("GET", path).status == 404
    assert api.call("POST", path, {"metadata": {}}).status == 404
    assert api.list(conversation).status == 404
    assert api.append(conversation, user("two")).status == 404


@on_both()
def test_deleted_conversation_keeps_items_in_the_service(api: Api) -> None:
    """The items of a deleted conversation can still be appended elsewhere by their id."""
    conversation = api.conversation("kept")
    item = api.list(conversation).body["data"][0]
    api.call("DELETE", f"/conversations/{conversation}")
    other = api.conversation()
    assert api.append(other, user("ignored", id=item["id"])).status == 200
    assert api.list(other).body["data"] == [item]


@on_both()
def test_unknown_conversation_is_404(api: Api) -> None:
    """A conversation that never was is not found, whatever is asked of it."""
    path = "/conversations/conv_0123456789"
    assert api.call("GET", path).status == 404
    assert api.call("DELETE", path).status == 404
    assert api.list("conv_0123456789").status == 404
    assert api.append("conv_0123456789", user("x")).status == 404
    assert api.call("GET", f"{path}/items/msg_1").status == 404
    assert api.call("DELETE", f"{path}/items/msg_1").status == 404


@on_both(agentic_differs="its 404 has another type, a code and no param")
def test_unknown_conversation_has_the_error_envelope(api: Api) -> None:
    """The 404 of an unknown conversation carries all four fields of the envelope."""
    error = api.call("GET", "/conversations/conv_0123456789").body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


# --- append ---


@on_both()
def test_append_answers_what_was_appended(api: Api) -> None:
    """An append answers a list envelope with the new items in input order, as listed later."""
    conversation = api.conversation("old")
    answer = api.append(conversation, user("a"), user("b"), user("c"))
    assert answer.status == 200
    assert set(answer.body) == {"object", "data", "first_id", "last_id", "has_more"}
    assert answer.body["object"] == "list"
    assert answer.body["has_more"] is False
    data = answer.body["data"]
    assert [text_of(item) for item in data] == ["a", "b", "c"]
    assert (answer.body["first_id"], answer.body["last_id"]) == (data[0]["id"], data[-1]["id"])
    assert api.list(conversation, order="asc").body["data"][1:] == data


@on_both()
def test_append_takes_one_to_twenty_items(api: Api) -> None:
    """An append holds 1 to 20 items; otherwise it is refused and nothing is stored."""
    conversation = api.conversation()
    twenty = [user(str(number)) for number in range(20)]
    assert api.append(conversation, *twenty).status == 200
    assert api.append(conversation, *twenty, user("20")).status == 400
    assert api.append(conversation).status == 400
    assert api.call("POST", f"/conversations/{conversation}/items", {}).status == 400
    assert len(api.list(conversation, limit=100).body["data"]) == 20


@on_both()
@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"nonsense",
        b'{"items": "text"}',
        b'{"items": ["text"]}',
        b'{"items": [{"type": "no_such_type"}]}',
        b'{"items": [{"role": "user"}]}',
        b'{"items": [{"content": "x"}]}',
        b'{"items": [{"type": "function_call", "name": "f"}]}',
    ],
)
def test_malformed_append_is_refused(api: Api, raw: bytes) -> None:
    """A body that is not JSON, or not items, is 400 and stores nothing."""
    conversation = api.conversation()
    answer = api.call("POST", f"/conversations/{conversation}/items", raw=raw)
    assert answer.status == 400
    assert answer.body["error"]["type"] == "invalid_request_error"
    assert api.list(conversation).body["data"] == []


@on_both()
def test_one_bad_item_refuses_the_batch(api: Api) -> None:
    """A batch with one item that is not acceptable is refused whole."""
    conversation = api.conversation()
    assert api.append(conversation, user("fine"), {"type": "no_such_type"}).status == 400
    assert api.list(conversation).body["data"] == []


@on_both()
def test_idempotency_key_is_ignored(api: Api) -> None:
    """The same append under the same idempotency key is stored twice."""
    conversation = api.conversation()
    for _ in range(2):
        answer = api.call(
            "POST",
            f"/conversations/{conversation}/items",
            {"items": [user("same")]},
            headers={"idempotency-key": "one-key"},
        )
        assert answer.status == 200
    assert api.texts(conversation) == ["same", "same"]


# --- normalisation ---


@on_both()
@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_string_content_becomes_a_part(api: Api, role: str) -> None:
    """String content of user, system and developer messages is listed as one input_text."""
    conversation = api.conversation()
    (item,) = api.append(conversation, {"role": role, "content": "text"}).body["data"]
    identifier = item.pop("id")
    assert identifier.startswith("msg_")
    assert item == {
        "type": "message",
        "role": role,
        "status": "completed",
        "content": [{"type": "input_text", "text": "text"}],
    }


@on_both(agentic_differs="it makes input_text of assistant strings; the service is not known")
def test_assistant_string_becomes_output_text(api: Api) -> None:
    """String content of an assistant message is listed as one output_text."""
    conversation = api.conversation()
    (item,) = api.append(conversation, {"role": "assistant", "content": "text"}).body["data"]
    (part,) = item["content"]
    assert (part["type"], part["text"]) == ("output_text", "text")


@on_both()
def test_item_without_type_is_a_message(api: Api) -> None:
    """An item without `type` is stored as a message."""
    conversation = api.conversation()
    (item,) = api.append(conversation, {"role": "user", "content": "x"}).body["data"]
    assert item["type"] == "message"


@on_both()
def test_calls_and_outputs_keep_their_fields(api: Api) -> None:
    """A function call and its output are listed with every field that was sent."""
    data = api.append(api.conversation(), CALL, OUTPUT).body["data"]
    for sent, listed in zip((CALL, OUTPUT), data, strict=True):
        assert listed.items() >= sent.items()
    assert data[0]["id"].startswith("fc_")


@on_both(agentic_differs="it adds a status to messages only; listed calls have one by the spec")
@pytest.mark.parametrize("item", [CALL, OUTPUT], ids=["call", "output"])
def test_status_is_added_to_calls_and_outputs(api: Api, item: dict[str, Any]) -> None:
    """A function call and its output are listed as completed."""
    (listed,) = api.append(api.conversation(), item).body["data"]
    assert listed.get("status") == "completed"


# --- who is asking, and for what ---


@on_both(agentic_differs="it asks for no key unless it is configured to")
def test_no_key_is_401(api: Api) -> None:
    """A request without an API key is refused."""
    answer = api.call("GET", "/conversations/conv_1", headers={"authorization": ""})
    assert answer.status == 401
    assert answer.body["error"]["type"] == "invalid_request_error"


@on_both()
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/conversations", 405), ("PUT", "/conversations/c", 405)],
)
def test_no_such_route(api: Api, method: str, path: str, status: int) -> None:
    """A path outside the API is 404, a method that a path does not take 405."""
    assert api.call(method, path).status == status
