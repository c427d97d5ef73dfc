"""The contract on both servers, continued: listings, cursors, single items, include."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.api import Api, text_of, user
from tests.emulator.contract import on_both, refusal

# --- listing ---


@on_both()
def test_empty_listing(api: Api) -> None:
    """An empty conversation lists as an envelope with null ids."""
    assert api.list(api.conversation()).body == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@on_both()
def test_listing_defaults(api: Api) -> None:
    """Without parameters a listing shows the newest 20 items, newest first."""
    conversation = api.conversation(*[str(number) for number in range(15)])
    api.append(conversation, *[user(str(number)) for number in range(15, 25)])
    page = api.list(conversation).body
    assert [text_of(item) for item in page["data"]] == [str(n) for n in range(24, 4, -1)]
    assert page["has_more"] is True
    assert page["first_id"] == page["data"][0]["id"]
    assert page["last_id"] == page["data"][-1]["id"]


@on_both()
@pytest.mark.parametrize(("limit", "status"), [(0, 400), (1, 200), (100, 200), (101, 400)])
def test_limit_is_1_to_100(api: Api, limit: int, status: int) -> None:
    """A limit from 1 to 100 is taken, anything else is 400."""
    assert api.list(api.conversation("x"), limit=limit).status == status


@on_both()
def test_unknown_order_is_refused(api: Api) -> None:
    """An order other than asc and desc is 400."""
    assert api.list(api.conversation("x"), order="sideways").status == 400


@on_both()
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_pages_join_without_gap(api: Api, order: str, limit: int) -> None:
    """Following `last_id` shows every item once, in order, and `has_more` ends it exactly."""
    texts = [str(number) for number in range(6)]
    conversation = api.conversation(*texts)
    seen: list[str] = []
    query: dict[str, Any] = {}
    more = True
    while more:
        page = api.list(conversation, order=order, limit=limit, **query).body
        seen += [text_of(item) for item in page["data"]]
        query = {"after": page["last_id"]}
        more = page["has_more"]
        assert more == (len(seen) < len(texts))
    assert seen == (texts if order == "asc" else texts[::-1])


@on_both()
def test_after_the_last_is_empty(api: Api) -> None:
    """After the last item of an order comes an empty page."""
    conversation = api.conversation("a", "b")
    newest, oldest = api.list(conversation).body["data"]
    assert api.texts(conversation, order="asc", after=newest["id"]) == []
    assert api.texts(conversation, order="desc", after=oldest["id"]) == []


@on_both()
def test_tail_check_is_one_request(api: Api) -> None:
    """A listing after the last known but one checks the tail and shows what follows."""
    conversation = api.conversation("a", "b")
    known = api.list(conversation, order="asc").body["data"]
    api.append(conversation, user("c"))
    page = api.list(conversation, order="asc", after=known[-2]["id"]).body["data"]
    assert page[0] == known[-1]
    assert [text_of(item) for item in page[1:]] == ["c"]


@on_both()
def test_unknown_cursor_is_404(api: Api) -> None:
    """An id that the conversation does not hold is 404 as `after`."""
    conversation, other = api.conversation("x"), api.conversation("y")
    elsewhere = api.list(other).body["last_id"]
    for identifier in ("msg_0123456789", elsewhere):
        answer = api.list(conversation, after=identifier)
        assert answer.status == 404
        assert answer.body == refusal(f"No item found with id '{identifier}'", "after", None)


@on_both()
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_deleted_cursor_is_404(api: Api, order: str) -> None:
    """The id of a deleted item is 404 as `after`."""
    conversation = api.conversation("a", "b", "c")
    middle = api.list(conversation).body["data"][1]["id"]
    api.call("DELETE", f"/conversations/{conversation}/items/{middle}")
    answer = api.list(conversation, after=middle, order=order)
    assert answer.status == 404
    assert answer.body == refusal(f"No item found with id '{middle}'", "after", None)


@on_both()
def test_no_validators(api: Api) -> None:
    """A listing carries no ETag, no version and no time of change."""
    conversation = api.conversation("x")
    answer = api.list(conversation)
    assert "etag" not in answer.headers
    assert "last-modified" not in answer.headers
    shown = api.call("GET", f"/conversations/{conversation}").body
    assert not {"version", "updated_at", "etag"} & set(shown)


# --- one item ---


@on_both()
def test_retrieve_item(api: Api) -> None:
    """One item reads as the listing shows it; one that is not there is 404."""
    conversation = api.conversation("x")
    (item,) = api.list(conversation).body["data"]
    path = f"/conversations/{conversation}/items"
    answer = api.call("GET", f"{path}/{item['id']}")
    assert (answer.status, answer.body) == (200, item)
    assert api.call("GET", f"{path}/msg_0123456789").status == 404


@on_both()
def test_delete_item(api: Api) -> None:
    """Deleting an item answers the conversation, and 404 the second time."""
    conversation = api.conversation("a", "b", "c")
    middle = api.list(conversation).body["data"][1]["id"]
    path = f"/conversations/{conversation}/items/{middle}"
    answer = api.call("DELETE", path)
    assert answer.status == 200
    assert answer.body == api.call("GET", f"/conversations/{conversation}").body
    assert api.texts(conversation, order="asc") == ["a", "c"]
    assert api.call("DELETE", path).status == 404
    assert api.call("GET", path).status == 404


# --- include ---


@on_both()
def test_include_logprobs(api: Api) -> None:
    """Asking for logprobs is accepted and changes nothing on text that has none."""
    conversation = api.conversation("x")
    plain = api.list(conversation).body
    asked = api.list(conversation, **{"include[]": "message.output_text.logprobs"})
    assert (asked.status, asked.body) == (200, plain)


@on_both()
def test_unknown_include_is_refused(api: Api) -> None:
    """A value that `include` does not know is 400."""
    assert api.list(api.conversation("x"), include="no_such_field").status == 400


@on_both(agentic_differs="include answers 400 but for logprobs")
def test_image_urls_are_left_out(api: Api) -> None:
    """A listing shows the URL of an input image only when asked for it."""
    conversation = api.conversation()
    url = "data:image/png;base64,AAAA"
    image = {"type": "input_image", "image_url": url, "detail": "low"}
    api.append(conversation, {"role": "user", "content": [image]})
    asked = api.list(conversation, **{"include[]": "message.input_image.image_url"})
    assert asked.status == 200
    assert asked.body["data"][0]["content"][0]["image_url"] == url
    assert "image_url" not in api.list(conversation).body["data"][0]["content"][0]
