"""Copies are shared within an account and never across accounts."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, MemoryOutbox
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client, sent, texts, users

ITEMS = 60


async def _listed(emulator: Emulator, client: AsyncOpenAI, conversation: str) -> int:
    """How many items the first read of a new session lists: all of them if nothing is shared."""
    sent(emulator)
    session = CachedSession(conversation_id=conversation, openai_client=client)
    assert len(await session.get_items()) == ITEMS
    (listing,) = emulator.requests
    return listing.items


ACCOUNTS: list[dict[str, Any]] = [
    {"api_key": "one"},
    {"api_key": "two"},
    {"api_key": "one", "organization": "org"},
    {"api_key": "one", "project": "project"},
    {"api_key": "one", "organization": "org", "project": "project"},
    {"api_key": "one", "default_headers": {"x-tenant": "a"}},
    {"api_key": "one", "default_query": {"api-version": "1"}},
]


async def test_no_two_accounts_share_a_copy(emulator: Emulator) -> None:
    """Key, organisation, project, headers and query each keep copies apart."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(new_client(emulator, **account)) for account in ACCOUNTS
        ]
        for client in clients:
            assert await _listed(emulator, client, conversation) == ITEMS


async def test_base_urls_keep_copies_apart(emulator: Emulator, client: AsyncOpenAI) -> None:
    """The same id on two servers is two conversations."""
    conversation = Elsewhere(emulator).conversation("a")
    session = CachedSession(conversation_id=conversation, openai_client=client)
    assert texts(await session.get_items()) == ["a"]
    with Emulator(service=emulator.service) as mirror:
        async with new_client(mirror) as other:
            session = CachedSession(conversation_id=conversation, openai_client=other)
            assert texts(await session.get_items()) == ["a"]
            assert [dict(entry.query)["limit"] for entry in mirror.requests] == ["100"]


@pytest.mark.parametrize("account", ACCOUNTS, ids=str)
async def test_clients_of_one_account_share_a_copy(
    account: dict[str, Any], emulator: Emulator
) -> None:
    """Two clients that speak for the same account use one copy."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    async with new_client(emulator, **account) as one, new_client(emulator, **account) as two:
        assert await _listed(emulator, one, conversation) == ITEMS
        assert await _listed(emulator, two, conversation) < ITEMS


async def test_clients_with_a_key_provider_share_nothing(emulator: Emulator) -> None:
    """What a key provider will answer is not known, so each such client is an account."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    numbers = itertools.count()

    async def provide() -> str:
        return f"key {next(numbers)}"

    provider: Any = provide
    async with (
        AsyncOpenAI(base_url=emulator.base_url, api_key=provider) as one,
        AsyncOpenAI(base_url=emulator.base_url, api_key=provider) as two,
    ):
        assert await _listed(emulator, one, conversation) == ITEMS
        assert await _listed(emulator, two, conversation) == ITEMS
        assert await _listed(emulator, one, conversation) < ITEMS


class _Token:
    """A key that is another one at every look."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __get__(self, client: object, kind: object) -> str:
        return f"token {next(self._numbers)}"

    def __set__(self, client: object, value: str) -> None:
        """What the client is made with is not used."""


class _KeyAtEachLook(AsyncOpenAI):
    """A client whose key is made anew at each look."""

    api_key: Any = _Token()


class _KeyInAProperty(AsyncOpenAI):
    """A client that looks its key up, which is the same each time, as far as can be seen."""

    @property
    def api_key(self) -> Any:
        return "key"

    @api_key.setter
    def api_key(self, value: str) -> None:
        """What the client is made with is not used."""


class _HeadersAtEachLook(AsyncOpenAI):
    """A client that signs each request anew."""

    _numbers = itertools.count()

    @property
    def auth_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {next(self._numbers)}"}


class _DefaultsAtEachLook(AsyncOpenAI):
    """A client that numbers its requests."""

    _numbers = itertools.count()

    @property
    def default_headers(self) -> dict[str, Any]:
        return {**super().default_headers, "x-request": f"{next(self._numbers)}"}


MOVING = pytest.mark.parametrize(
    "kind", [_KeyAtEachLook, _KeyInAProperty, _HeadersAtEachLook, _DefaultsAtEachLook]
)


@MOVING
@pytest.mark.parametrize("new_outbox", [lambda: None, MemoryOutbox], ids=["without", "with outbox"])
async def test_a_key_that_is_made_anew(kind: Any, new_outbox: Any, emulator: Emulator) -> None:
    """A client whose key, or headers, are another at each look reads its own one copy."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    cache = ConversationCache()
    async with kind(base_url=emulator.base_url, api_key="key") as client:
        for reads in range(1, 4):
            outbox = new_outbox()
            async with CachedSession(
                conversation_id=conversation, openai_client=client, cache=cache, outbox=outbox
            ) as session:
                sent(emulator)
                for _ in range(3):
                    assert len(await session.get_items()) == ITEMS + reads - 1
                assert session.stats.hits == 2
                (listing,) = emulator.requests
                assert (listing.items == ITEMS) == (reads == 1)
                await session.add_items(users("more"))
                await session.flush()
                assert await session.get_items() == emulator.items(conversation)
    assert len(cache) == 1


@MOVING
async def test_such_clients_share_nothing(kind: Any, emulator: Emulator) -> None:
    """Whose account such a client speaks for is not known, so each is an account of its own."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    async with (
        kind(base_url=emulator.base_url, api_key="key") as one,
        kind(base_url=emulator.base_url, api_key="key") as two,
        new_client(emulator) as plain,
    ):
        for client in (one, two, plain):
            assert await _listed(emulator, client, conversation) == ITEMS
        assert await _listed(emulator, one, conversation) < ITEMS


async def test_a_client_of_a_class_of_its_own(emulator: Emulator) -> None:
    """A subclass with a fixed key, and headers of its own, is an account like any other's."""

    class Named(AsyncOpenAI):
        @property
        def default_headers(self) -> dict[str, Any]:
            return {**super().default_headers, "x-program": "chat"}

    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    async with (
        Named(base_url=emulator.base_url, api_key="key") as one,
        Named(base_url=emulator.base_url, api_key="key") as two,
    ):
        assert await _listed(emulator, one, conversation) == ITEMS
        assert await _listed(emulator, two, conversation) < ITEMS


async def test_a_key_that_changes(emulator: Emulator, client: AsyncOpenAI) -> None:
    """A session whose client gets another key leaves the old account's copy behind."""
    conversation = Elsewhere(emulator).conversation(*map(str, range(ITEMS)))
    session = CachedSession(conversation_id=conversation, openai_client=client)
    await session.get_items()
    sent(emulator)
    client.api_key = "another"
    await session.get_items()
    (listing,) = emulator.requests
    assert listing.items == ITEMS
