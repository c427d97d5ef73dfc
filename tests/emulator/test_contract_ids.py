"""The contract on both servers, continued: ids that the client sends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.api import Api, user
from tests.emulator.contract import on_both, refusal


@on_both()
@pytest.mark.parametrize(
    ("item", "prefix"),
    [
        (user("x", id="item_wrong"), "msg"),
        (
            {
                "type": "function_call",
                "id": "msg_wrong",
                "call_id": "c",
                "name": "f",
                "arguments": "{}",
            },
            "fc",
        ),
    ],
)
def test_wrong_prefix_is_refused(api: Api, item: dict[str, Any], prefix: str) -> None:
    """An id with the prefix of another type is 400 and names its place in the request."""
    conversation = api.conversation()
    answer = api.append(conversation, item)
    assert answer.status == 400
    assert answer.body == refusal(
        f"Invalid 'items[0].id': '{item['id']}'. Expected an ID that begins with '{prefix}'.",
        "items[0].id",
        "invalid_value",
    )
    assert api.list(conversation).body["data"] == []


@on_both()
def test_wrong_prefix_names_the_item(api: Api) -> None:
    """The place in the request counts from the first item of the batch."""
    answer = api.append(api.conversation(), user("a"), user("b", id="fc_wrong"))
    assert answer.status == 400
    assert answer.body["error"]["param"] == "items[1].id"


@on_both()
def test_known_id_is_refused_with_the_batch(api: Api) -> None:
    """An id of this conversation is refused, and nothing of its batch is stored."""
    conversation = api.conversation("one")
    held = api.list(conversation).body["last_id"]
    answer = api.append(conversation, user("new"), user("again", id=held))
    assert answer.status == 400
    assert answer.body == refusal(
        "Item already in conversation", "items", "item_already_in_conversation"
    )
    assert api.texts(conversation) == ["one"]


@on_both()
def test_id_of_another_conversation_is_shared(api: Api) -> None:
    """An item named by the id of one stored elsewhere is that one; its content wins."""
    (item,) = api.list(api.conversation("original")).body["data"]
    other = api.conversation()
    answer = api.append(other, user("replacement", id=item["id"]))
    assert answer.status == 200
    assert answer.body["data"] == [item]
    assert api.list(other).body["data"] == [item]


@on_both()
def test_shared_id_twice_in_a_request_is_listed_twice(api: Api) -> None:
    """An id stored elsewhere may come twice in one request, and is listed twice."""
    (item,) = api.list(api.conversation("original")).body["data"]
    other = api.conversation()
    answer = api.append(other, user("first", id=item["id"]), user("second", id=item["id"]))
    assert answer.status == 200
    assert answer.body["data"] == [item, item]
    assert api.list(other).body["data"] == [item, item]


@on_both()
def test_shared_item_survives_its_deletion_elsewhere(api: Api) -> None:
    """Deleting a shared item from one conversation leaves it in the other."""
    first = api.conversation("original")
    (item,) = api.list(first).body["data"]
    other = api.conversation()
    api.append(other, user("x", id=item["id"]))
    api.call("DELETE", f"/conversations/{first}/items/{item['id']}")
    assert api.list(first).body["data"] == []
    assert api.list(other).body["data"] == [item]


@on_both(agentic_differs="it refuses item references")
def test_item_reference_is_shared(api: Api) -> None:
    """A reference to an item stored elsewhere brings that item in."""
    (item,) = api.list(api.conversation("original")).body["data"]
    other = api.conversation()
    answer = api.append(other, {"type": "item_reference", "id": item["id"]})
    assert answer.status == 200
    assert api.list(other).body["data"] == [item]
