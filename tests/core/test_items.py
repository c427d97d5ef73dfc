"""Items as they are sent and as they are held."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from cached_session.core.items import accept, body, copies, decode, hold, unhold
from tests.core.strategies import json_objects, json_values


@given(st.lists(json_objects, max_size=4))
def test_accepted_items_are_the_same_json(items: list[dict[str, Any]]) -> None:
    """What is sent reads as what was given, one object an item, and so does the request's body."""
    accepted = accept(items)
    assert [decode(item) for item in accepted] == items
    assert json.loads(body(accepted)) == {"items": items}


@given(json_objects)
def test_accepted_items_are_copies(item: dict[str, Any]) -> None:
    """Changing an item after it was accepted changes nothing of what is sent."""
    before = copy.deepcopy(item)
    (accepted,) = accept([item])
    item.clear()
    assert decode(accepted) == before


@given(json_objects)
def test_held_items_are_the_same(item: dict[str, Any]) -> None:
    """What is held reads as what was listed, key order included, each time anew."""
    item = {**item, "id": "msg_1"}
    before = json.dumps(item)
    held = hold(item)
    one, two = unhold(held), copies([held])[0]
    one.clear()
    item.clear()
    assert json.dumps(two) == json.dumps(unhold(held)) == before
    assert held.id == "msg_1"
    assert held.size > len(held.data)


def _place(value: Any, bad: Any, into: Any) -> dict[str, Any]:
    """An item with a bad value some way down."""
    return {"role": "user", "secret": "secret-content", "content": into([value, bad])}


@given(
    json_values,
    st.sampled_from(
        [math.nan, math.inf, -math.inf, "\ud800", object(), b"secret-content", {"secret-content"}]
    ),
    st.sampled_from([list, tuple, lambda inner: {"in": inner}, lambda inner: [[inner]]]),
    st.integers(0, 3),
)
def test_what_json_cannot_carry(value: Any, bad: Any, into: Any, index: int) -> None:
    """A value without JSON form, however deep, is refused by the item's place, not its content."""
    items = [{"role": "user"}] * index + [_place(value, bad, into)]
    with pytest.raises((TypeError, ValueError)) as caught:
        accept(items)
    assert f"items[{index}]" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("items", [None, 1, "text", b"bytes", {}, {"role": "user"}, iter([]), {1}])
def test_what_is_no_list(items: object) -> None:
    """Anything but a list or a tuple is refused, under the name that the caller knows."""
    with pytest.raises(TypeError, match=r"^messages must be a list"):
        accept(items, argument="messages")


@pytest.mark.parametrize("key", [(1, 2), b"key", object()])
def test_keys_that_are_no_strings(key: object) -> None:
    """A key that JSON has no form for is refused, and the error says that it is a key."""
    with pytest.raises(TypeError, match="a key is not a string"):
        accept([{key: "value"}])


def test_nesting_beyond_all_bounds() -> None:
    """Nesting that no encoder can follow is refused, and so is an item that contains itself."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        accept([{"content": deep}])
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(ValueError, match="contains itself"):
        accept([cycle])


def test_models_as_the_client_dumps_them() -> None:
    """A model is dumped in JSON mode with the fields that were set, inside of items too."""
    part = ResponseOutputText(type="output_text", text="a", annotations=[])
    model = ResponseOutputMessage(
        id="msg_1", type="message", role="assistant", status="completed", content=[part]
    )
    expected = {"type": "output_text", "text": "a", "annotations": []}
    assert decode(accept([model])[0])["content"] == [expected]
    assert decode(accept([{"role": "assistant", "content": [part]}])[0])["content"] == [expected]


def test_a_model_that_dumps_to_no_object() -> None:
    """A model that dumps to something else than an object is no item."""

    class Odd:
        def model_dump(self, *, mode: str, exclude_unset: bool, by_alias: bool) -> list[int]:
            return [1]

    with pytest.raises(TypeError, match=r"items\[0\] must be an object"):
        accept([Odd()])
