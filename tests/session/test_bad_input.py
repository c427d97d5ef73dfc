"""Bad input is refused with an error that names the argument, and nothing is sent."""

from __future__ import annotations

import datetime
import math
import uuid
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, RetryBudget, RetryPolicy
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, sent, texts, user

CYCLE: dict[str, Any] = {"role": "user", "content": []}
CYCLE["content"].append(CYCLE)
DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("items", "name"),
    [
        (None, "items"),
        ("text", "items"),
        (b"bytes", "items"),
        ({"role": "user", "content": "a"}, "items"),
        (7, "items"),
        ({"a", "b"}, "items"),
        (iter([user("a")]), "items"),
        (["text"], r"items\[0\]"),
        ([None], r"items\[0\]"),
        ([user("a"), 3], r"items\[1\]"),
        ([[user("a")]], r"items\[0\]"),
        ([user("a"), {"role": "user", "content": {1, 2}}], r"items\[1\]"),
        ([{"role": "user", "content": b"bytes"}], r"items\[0\]"),
        ([{"role": "user", "content": object()}], r"items\[0\]"),
        ([{("a", "b"): "c"}], r"items\[0\]"),
        ([{"role": "user", "content": 1 + 2j}], r"items\[0\]"),
    ],
)
async def test_items_of_a_wrong_type(
    items: Any, name: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """What is no list of JSON objects raises a TypeError that names the item."""
    session = CachedSession(openai_client=client)
    with pytest.raises(TypeError, match=name):
        await session.add_items(items)
    assert sent(emulator) == []


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": math.nan},
        {"role": "user", "content": [{"n": math.inf}]},
        {"role": "user", "content": -math.inf},
        {"role": "user", "content": "\ud800"},
        {"role": "user", "\udfff": "a"},
        CYCLE,
        {"role": "user", "content": DEEP},
    ],
    ids=["nan", "inf", "-inf", "surrogate", "surrogate key", "cycle", "deep"],
)
async def test_items_that_json_cannot_carry(
    item: Any, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A value that JSON cannot carry raises a ValueError that names the item."""
    session = CachedSession(openai_client=client)
    with pytest.raises(ValueError, match=r"items\[20\]"):
        await session.add_items([user("a")] * 20 + [item])
    assert sent(emulator) == []


async def test_what_is_sent_as_it_is(emulator: Emulator, client: AsyncOpenAI) -> None:
    """Tuples, other mappings, dates, and any text that UTF-8 can carry are sent."""
    session = CachedSession(openai_client=client)
    odd = '\0 \u2028 \U0001f600 "quoted" é'
    items: Any = (
        OrderedDict(role="user", content=odd),
        MappingProxyType({"role": "user", "content": "proxied"}),
        {"role": "user", "content": "dated", "when": datetime.date(2020, 1, 2)},
    )
    await session.add_items(items)
    read = await session.get_items()
    assert texts(read) == [odd, "proxied", "dated"]
    assert dict(read[2])["when"] == "2020-01-02"
    assert read == emulator.items(session.session_id)


async def test_bad_items_after_good_ones(emulator: Emulator, client: AsyncOpenAI) -> None:
    """One bad item among many refuses the whole call: nothing of it lands."""
    session = CachedSession(openai_client=client)
    await session.add_items([user("a")])
    sent(emulator)
    with pytest.raises(TypeError, match=r"items\[45\]"):
        await session.add_items([user("b")] * 45 + [object()])
    assert sent(emulator) == []
    assert texts(await session.get_items()) == ["a"]


@pytest.mark.parametrize("limit", ["3", 2.0, True, [1], object()])
async def test_limit_of_a_wrong_type(limit: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """A `limit` that is no int raises a TypeError, from the argument and from the settings."""
    session = CachedSession(openai_client=client)
    with pytest.raises(TypeError, match="limit"):
        await session.get_items(limit)
    assert sent(emulator) == []


async def test_limit_may_be_large(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A `limit` beyond every page and every machine word is a limit like any other."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    assert texts(await session.get_items(10**30)) == ["a"]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("underlying_session", "conv_1", TypeError),
        ("underlying_session", object(), TypeError),
        ("conversation_id", 7, TypeError),
        ("conversation_id", b"conv_1", TypeError),
        ("conversation_id", "", ValueError),
        ("conversation_id", ".", ValueError),
        ("conversation_id", "..", ValueError),
        ("conversation_id", "conv_1\n", ValueError),
        ("conversation_id", "conv\0", ValueError),
        ("openai_client", "client", TypeError),
        ("session_settings", 5, TypeError),
        ("session_settings", [("limit", 5)], TypeError),
        ("cache", {}, TypeError),
        ("max_staleness", "5", TypeError),
        ("max_staleness", True, TypeError),
        ("max_staleness", -1, ValueError),
        ("max_staleness", math.nan, ValueError),
        ("retry", 3, TypeError),
        ("observer", "print", TypeError),
    ],
)
async def test_constructor_arguments(
    name: str, value: Any, error: type[Exception], client: AsyncOpenAI
) -> None:
    """Each argument of the constructor is checked, and the error names it."""
    arguments = {"openai_client": client, name: value}
    with pytest.raises(error, match=name):
        CachedSession(**arguments)


async def test_conversation_id_of_a_wrong_kind_of_client(emulator: Emulator) -> None:
    """A synchronous client is refused by name."""
    from openai import OpenAI

    with (
        OpenAI(base_url=emulator.base_url, api_key="key") as synchronous,
        pytest.raises(TypeError, match="openai_client"),
    ):
        CachedSession(openai_client=synchronous)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [7, "", "..", "conv_1\r\nx: y"])
async def test_session_id_setter(value: Any, emulator: Emulator, client: AsyncOpenAI) -> None:
    """The setter checks the id, and a refused one changes nothing."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    with pytest.raises((TypeError, ValueError), match="session_id"):
        session.session_id = value
    assert session.session_id == conversation
    assert texts(await session.get_items()) == ["a"]


@pytest.mark.parametrize("text", ["conv_a/../conv_b", "conv_a/items", "conv_a?x=1", "a#b", "%2e"])
async def test_ids_stay_one_part_of_the_path(
    text: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """An id with characters that mean something in a URL reaches no other path of the server."""
    from openai import NotFoundError

    session = CachedSession(conversation_id=text, openai_client=client)
    with pytest.raises(NotFoundError):
        await session.get_items()
    (request,) = emulator.requests
    assert request.query == (("order", "desc"), ("limit", "100"))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_attempts", 0, ValueError),
        ("max_attempts", 1.5, TypeError),
        ("max_attempts", True, TypeError),
        ("deadline", 0, ValueError),
        ("deadline", "60", TypeError),
        ("attempt_timeout", -1, ValueError),
        ("attempt_timeout", math.inf, ValueError),
        ("initial_delay", math.nan, ValueError),
        ("max_delay", None, TypeError),
    ],
)
def test_retry_policy(name: str, value: Any, error: type[Exception]) -> None:
    """Each number of a RetryPolicy is checked, and the error names it."""
    with pytest.raises(error, match=name):
        RetryPolicy(**{name: value})


def test_retry_budget() -> None:
    """A RetryBudget needs a positive capacity and refill."""
    for arguments in ({"capacity": 0.0}, {"refill": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            RetryBudget(**arguments)


async def test_values_without_json_form_are_named_by_type(client: AsyncOpenAI) -> None:
    """The error says which type has no JSON form, not what the value is."""
    session = CachedSession(openai_client=client)
    secret: Any = {"role": "user", "content": uuid.UUID(int=7)}
    with pytest.raises(TypeError, match="UUID") as caught:
        await session.add_items([secret])
    assert str(uuid.UUID(int=7)) not in str(caught.value)
