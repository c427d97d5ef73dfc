"""Texts that PostgreSQL cannot hold, and engines that are set otherwise than they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from cached_session import ConversationCache, Outbox, OutboxError, OutboxUnavailable, PostgresOutbox
from cached_session.emulator import Emulator
from cached_session.emulator.service import Service
from cached_session.emulator.store import ConversationStore, random_ids
from cached_session.outbox.log import Found, Log
from cached_session.outbox.records import Address
from tests.outbox.support import ADDRESS, accept, opened, waiting
from tests.outbox_sessions.support import Process, raised, words
from tests.postgres import Server
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.processes

LEVELS = ["repeatable read", "serializable"]


@pytest.fixture(params=["\0", "\\u0000", "\\"], ids=["nul", "escaped", "backslash"])
def odd(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """A server whose items have ids with a character that not every place can hold."""
    ids = random_ids()

    def new_id(prefix: str) -> str:
        return ids(prefix) if prefix == "conv" else f"{ids(prefix)}{request.param}b"

    with Emulator(service=Service(ConversationStore(new_id=new_id))) as emulator:
        yield emulator


async def test_odd_ids(odd: Emulator, outbox: Outbox) -> None:
    """An item's id that is no text to PostgreSQL is kept as on a file, and as quickly."""
    conversation = Elsewhere(odd).conversation("a")
    async with asyncio.timeout(8), Process(odd, outbox) as process:
        session = process.session(conversation)
        await session.get_items()
        for number in range(2):
            await session.add_items(users(str(number)))
            await session.flush()
        assert words(await session.get_items()) == ["a", "0", "1"]
        assert await session.get_items() == odd.items(conversation)
        await session.aclose()
        # Whoever comes anew takes them from what is kept.
        process.cache = ConversationCache()
        another = process.session(conversation)
        assert await another.get_items() == odd.items(conversation)
        await another.aclose()


async def test_odd_names(postgres: Server) -> None:
    """Conversations are kept apart, and have their names, whatever is in these."""
    names = ['a"b', "a'b", "a\\b", 'a\\"b', "a,b", "{a}", "NULL", " ", "", "a\0b", "a\\u0000b"]
    url = postgres.with_tables()
    one, two = PostgresOutbox(url), PostgresOutbox(url)
    try:
        for name in names:
            place = ADDRESS._replace(conversation=name)

            def look(log: Log, place: Address = place) -> Found | None:
                return log.validate(place, opened(log), "another one", 0, None)

            await one.transact(accept(name.encode(), address=place))
            found = await two.transact(look)
            assert found is not None
            assert found.address == place
            assert [row.data for row in found.rows] == [name.encode()]
        summaries = await two.transact(lambda log: log.summaries())
        assert sorted(each.address.conversation for each in summaries) == sorted(names)
    finally:
        await one.let_go()
        await two.let_go()


async def test_what_cannot_be_sent(postgres: Server) -> None:
    """A call whose arguments cannot be sent is refused at once, and the connection is as before."""
    outbox = PostgresOutbox(postgres.with_tables())
    try:
        for odd in (object(), "\ud800"):
            begun = time.monotonic()
            error = await raised(
                outbox.transact(
                    lambda log, odd=odd: log.accept(  # type: ignore[misc]
                        ADDRESS, opened(log), 0, [b"a"], cast(Any, odd)
                    )
                )
            )
            assert type(error) is OutboxError
            assert "nothing was recorded" in str(error)
            assert time.monotonic() - begun < 5
        assert await outbox.transact(waiting) == []
        await outbox.transact(accept(b"1"))
        assert await outbox.transact(waiting) == [b"1"]
    finally:
        await outbox.let_go()


@pytest.mark.parametrize("level", LEVELS)
async def test_isolation(level: str, postgres: Server, emulator: Emulator) -> None:
    """Where a database isolates transactions more than it does by itself, nothing is different."""
    address = postgres.with_tables()
    name = address.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    conversation = Elsewhere(emulator).conversation()
    async with (
        Process(emulator, PostgresOutbox(address)) as one,
        Process(emulator, PostgresOutbox(address)) as two,
    ):
        sessions = [process.session(conversation) for process in (one, two)]
        for session in sessions:
            await session.get_items()

        async def append(number: int) -> None:
            async with asyncio.timeout(20):
                for each in range(25):
                    await sessions[number].add_items(users(f"{number}.{each}"))

        await asyncio.gather(append(0), append(1))
        for session in sessions:
            await session.flush()
        found = texts(emulator.items(conversation))
        for number in range(2):
            mine = [text for text in found if text.startswith(f"{number}.")]
            assert mine == [f"{number}.{each}" for each in range(25)]
        assert len(found) == 50
        for session in sessions:
            assert words(await session.get_items()) == found


async def test_unavailable_is_no_refusal(postgres: Server) -> None:
    """A statement that the engine ended for its time is refused for now, and nothing was done."""
    address = postgres.with_tables()
    outbox = PostgresOutbox(address + "?options=-c%20statement_timeout%3D300")
    other = PostgresOutbox(address)
    try:
        await outbox.transact(accept(b"1"))
        with postgres.locked("cached_session.conversations", address.rpartition("/")[2]):
            error = await raised(outbox.transact(accept(b"2")))
        assert isinstance(error, OutboxUnavailable)
        assert "nothing was recorded" in str(error)
        assert await other.transact(waiting) == [b"1"]
        await outbox.transact(accept(b"2"))
        assert await other.transact(waiting) == [b"1", b"2"]
    finally:
        await outbox.let_go()
        await other.let_go()
