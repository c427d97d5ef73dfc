"""Looking after an outbox from a program: what waits is listed, decided about and sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from openai import AsyncOpenAI

from cached_session import (
    BacklogChanged,
    BacklogSummary,
    CachedSession,
    ConversationCache,
    MemoryOutbox,
    Observer,
    Outbox,
    OutboxAdmin,
    OutboxError,
    OutboxPaused,
    PostgresOutbox,
    Relay,
    RetryPolicy,
    RetryScheduled,
    SQLiteOutbox,
    Standing,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import until
from tests.postgres import Server
from tests.session.support import PATIENCE, Elsewhere, new_client, texts, user, users

SECRET = "the secret of the cellar"


@pytest.fixture(params=["file", pytest.param("database", marks=pytest.mark.processes)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an outbox is to be, as a program names it."""
    if request.param == "file":
        return str(tmp_path / "agent.db")
    postgres: Server = request.getfixturevalue("postgres")
    return postgres.with_tables()


def an_outbox(place: str, account: str | None = None) -> Outbox:
    if "://" in place:
        return PostgresOutbox(place, account=account)
    return SQLiteOutbox(place, account=account)


async def leave(
    place: str, client: AsyncOpenAI, name: str, *words: str, account: str | None = None
) -> None:
    """Has a process record messages, and end before the server has any of them."""
    outbox = an_outbox(place, account)
    session = CachedSession(
        conversation_id=name, openai_client=client, outbox=outbox, cache=ConversationCache()
    )
    await session.add_items(users(*words))
    await session.aclose()
    await outbox.aclose()


def no_appends(emulator: Emulator, kind: FaultKind = FaultKind.RESET_BEFORE_COMMIT) -> None:
    emulator.faults = lambda request: Fault(kind) if is_append(request) else None


def told_of(kind: type, event: asyncio.Event) -> Observer:
    """An observer that sets an event at the first trouble of a kind."""
    return lambda told: event.set() if isinstance(told, kind) and told.error else None


async def test_nothing_is_discarded_where_nothing_waits(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Where nothing waits, late copies of what was sent are removed all the same."""
    conversation = Elsewhere(emulator).conversation()
    late = [Fault(FaultKind.LATE_COMMIT, delay=1.0)]
    emulator.faults = lambda request: late.pop() if late and is_append(request) else None
    outbox = an_outbox(place)
    async with CachedSession(
        conversation_id=conversation,
        openai_client=client,
        outbox=outbox,
        retry=RetryPolicy(attempt_timeout=0.2),
    ) as session:
        await session.add_items(users("once"))
        await session.flush()
        async with OutboxAdmin(place) as admin:
            assert await admin.discard(conversation) == 0
            assert not await admin.unreadable(conversation)
        await until(lambda: len(emulator.items(conversation)) == 2)
        await session.refresh()
        assert texts(await session.get_items()) == ["once"]
        assert texts(emulator.items(conversation)) == ["once"]
    await outbox.aclose()


async def test_what_waits_is_seen_kept_and_removed(
    place: str, emulator: Emulator, client: AsyncOpenAI, tmp_path: Path
) -> None:
    """With no session open, a program lists what waits, reads it, exports it and discards it."""
    one, other = Elsewhere(emulator).conversation(), Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, one, SECRET, "2")
    await leave(place, client, other, "3")
    async with OutboxAdmin(place) as admin:
        found = [(each.conversation_id, each.items) for each in await admin.backlogs()]
        assert found == [(one, 2), (other, 1)]
        items = await admin.waiting(one)
        assert [each.item for each in items] == [user(SECRET), user("2")]
        assert SECRET not in repr(items)
        path = tmp_path / "waiting.jsonl"
        assert await admin.export(one, path) == [each.data for each in items]
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == users(SECRET, "2")
        with pytest.raises(FileExistsError):
            await admin.export(one, path)
        number = (await admin.backlog(one)).number
        assert await admin.discard(number) == 2
        assert await admin.waiting(other) != []
        assert [each.items for each in await admin.backlogs() if each.items] == [1]
    # It would open the outbox anew, and nobody would close it.
    with pytest.raises(RuntimeError, match="async with"):
        await admin.backlogs()
    assert emulator.items(one) == []


async def test_a_pause_is_cleared_and_what_waits_is_sent(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """`retry` clears a pause and sends nothing; a relay sends what waits then, once, and counts."""
    name = Elsewhere(emulator).conversation()
    outbox = an_outbox(place)
    session = CachedSession(
        conversation_id=name, openai_client=client, outbox=outbox, cache=ConversationCache()
    )
    no_appends(emulator, FaultKind.RATE_LIMITED_QUOTA)
    await session.add_items(users("1", "2"))
    with pytest.raises(OutboxPaused):
        await session.flush()
    await session.aclose()
    await outbox.aclose()
    emulator.faults = None
    async with OutboxAdmin(place) as admin:
        relay = Relay(admin.outbox, client)
        async with relay:
            await relay.run(every=0.05, once=True)
            assert await relay.standing() == Standing(waiting=1, paused=1, others=0)
            assert emulator.items(name) == []
            before = await admin.retry(name)
            assert (before.items, before.owned) == (2, False)
            assert "429" in (before.paused or "")
            assert (await admin.backlog(name)).paused is None
            await relay.run(every=0.05, once=True)
            assert await relay.standing() == Standing(0, 0, 0)
        assert relay.sent == 2
    assert texts(emulator.items(name)) == ["1", "2"]


async def test_what_a_session_here_sends_is_left_alone(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """What a session is sending, of this process too, is not removed from under it."""
    name = Elsewhere(emulator).conversation()
    outbox = an_outbox(place)
    offline = asyncio.Event()
    session = CachedSession(
        conversation_id=name,
        openai_client=client,
        outbox=outbox,
        cache=ConversationCache(),
        observer=told_of(BacklogChanged, offline),
    )
    no_appends(emulator)
    await session.add_items(users("1"))
    await offline.wait()
    async with OutboxAdmin(place) as admin:
        assert (await admin.backlog(name)).owned
        with pytest.raises(OutboxError, match="nothing was removed") as refused:
            await admin.discard(name)
        assert refused.value.conversation_id == name
        with pytest.raises(OutboxError, match="Close its sessions first"):
            await admin.move(name, "prod")
    emulator.faults = None
    await session.flush()
    await session.aclose()
    await outbox.aclose()
    assert texts(emulator.items(name)) == ["1"]


async def test_a_backlog_becomes_another_accounts(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Moved to a named account, what waits is that account's, and its key sends it."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    emulator.faults = None
    async with OutboxAdmin(place, account="prod") as admin:
        moved = await admin.move(name, "prod")
        assert isinstance(moved, BacklogSummary)
        assert (moved.address.account, moved.items) == ("prod", 1)
        async with (
            new_client(emulator, "another key") as newer,
            Relay(admin.outbox, newer) as relay,
        ):
            await relay.run(every=0.05, once=True)
        # Where nothing waits any more, that is no error, as with `discard` and `retry`.
        assert await admin.move(name, "dev") == await admin.backlog(name)
        assert (await admin.backlog(name)).address.account == "prod"
    assert texts(emulator.items(name)) == ["1"]


async def test_what_an_admin_s_outbox_sends(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """What a session sends through an admin's outbox ends with the admin, and is left to others."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    offline = asyncio.Event()
    async with OutboxAdmin(place) as admin:
        session = CachedSession(
            conversation_id=name,
            openai_client=client,
            outbox=admin.outbox,
            cache=ConversationCache(),
            observer=told_of(BacklogChanged, offline),
        )
        await session.get_items()
        await offline.wait()
        await session.aclose()
    async with OutboxAdmin(place) as admin:
        assert not (await admin.backlog(name)).owned
    emulator.faults = None
    assert emulator.items(name) == []


async def test_an_admin_that_was_left(place: str, emulator: Emulator, client: AsyncOpenAI) -> None:
    """Once it was left it does nothing, and opens nothing, until it is entered again."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    admin = OutboxAdmin(place)
    for _ in range(2):
        async with admin:
            assert (await admin.backlog(name)).items == 1
        with pytest.raises(RuntimeError, match="async with"):
            await admin.backlogs()


@pytest.mark.processes
async def test_an_admin_that_is_entered_again(
    postgres: Server, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """It comes to a database by its whole address each time, and not by what is told of that."""
    place, name = postgres.with_tables(), Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    with psycopg.connect(place, autocommit=True) as connection:
        database = place.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    admin = OutboxAdmin(f"{place}?options=-cdefault_transaction_read_only%3Doff")
    async with admin:
        assert admin.name == place
    async with admin:
        assert await admin.discard(name) == 1


async def test_a_name_that_several_have_or_nobody(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """An id that two accounts have is not guessed at; what nobody has is said to be none."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    await leave(place, client, name, "2", account="prod")
    async with OutboxAdmin(place) as admin:
        first, second = await admin.backlogs()
        with pytest.raises(OutboxError, match=f"{first.number}, {second.number}") as several:
            await admin.discard(name)
        assert several.value.conversation_id == name
        assert [each.item for each in await admin.waiting(second.number)] == users("2")
        for unknown in ("conv_unknown", 99):
            with pytest.raises(OutboxError, match=f"there is no backlog {unknown}"):
                await admin.waiting(unknown)
        with pytest.raises(TypeError, match="backlog must be"):
            await admin.waiting(None)  # type: ignore[arg-type]  # what is refused
        with pytest.raises(ValueError, match="account must be"):
            await admin.move(first.number, "")


async def test_no_outbox_is_made_by_looking(tmp_path: Path) -> None:
    """A file that is not there, or is no outbox, is refused and left as it is."""
    path = tmp_path / "agent.db"
    with pytest.raises(OutboxError, match="there is no file"):
        async with OutboxAdmin(path):
            pass
    assert not path.exists()
    path.write_text("something else")
    with pytest.raises(OutboxError, match="not an SQLite database"):
        async with OutboxAdmin(path):
            pass
    assert path.read_text() == "something else"
    with pytest.raises(RuntimeError, match="async with"):
        await OutboxAdmin(path).backlogs()
    # What may hold a password is told by nobody, before it is known to be none, either.
    assert "secret" not in OutboxAdmin("postgresql://app:secret@db/agents").name
    with pytest.raises(TypeError, match="not bytes"):
        OutboxAdmin(b"agent.db")  # type: ignore[arg-type]  # what is refused


async def test_a_relay_that_is_closed_lets_go(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """Closing a relay ends its run for good; what it had begun is sent, once, by the next one."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    policy = RetryPolicy(initial_delay=0.01, max_delay=0.01)
    async with OutboxAdmin(place) as admin:
        failed = asyncio.Event()
        relay = Relay(admin.outbox, client, retry=policy, observer=told_of(RetryScheduled, failed))
        running = asyncio.create_task(relay.run(every=60))
        await failed.wait()
        await relay.aclose(grace=5)
        async with asyncio.timeout(PATIENCE):
            await running
            # It is closed, and looks no more.
            await relay.run(every=60)
        assert not (await admin.backlog(name)).owned
        emulator.faults = None
        async with Relay(admin.outbox, client) as again:
            await again.run(every=0.05, once=True)
    assert texts(emulator.items(name)) == ["1"]


async def test_a_relay_runs_once_at_a_time(
    place: str, emulator: Emulator, client: AsyncOpenAI
) -> None:
    """A second run of a relay is refused, by the outbox's name, and the first one goes on."""
    name = Elsewhere(emulator).conversation()
    no_appends(emulator)
    await leave(place, client, name, "1")
    policy = RetryPolicy(initial_delay=0.01, max_delay=0.01)
    async with OutboxAdmin(place) as admin:
        failed = asyncio.Event()
        watching = told_of(RetryScheduled, failed)
        async with Relay(admin.outbox, client, retry=policy, observer=watching) as relay:
            running = asyncio.create_task(relay.run(every=0.05, once=True))
            await failed.wait()
            with pytest.raises(RuntimeError, match="is running already") as refused:
                await relay.run(every=0.05, once=True)
            assert repr(admin.outbox) in str(refused.value)
            emulator.faults = None
            await running
            assert texts(emulator.items(name)) == ["1"]
            # It may run again.
            await relay.run(every=0.05, once=True)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda path, client: Relay(MemoryOutbox(), client), ValueError, "in memory"),
        (lambda path, client: Relay(SQLiteOutbox(path), None), TypeError, "openai_client must be"),
        (lambda path, client: Relay(str(path), client), TypeError, "outbox must be"),
        (lambda path, client: Relay(None, client), TypeError, "outbox must be"),
        (
            lambda path, client: Relay(SQLiteOutbox(path), client.with_options(api_key=_key)),
            ValueError,
            "not fixed",
        ),
    ],
    ids=["memory", "no client", "a path", "no outbox", "no fixed key"],
)
async def test_a_relay_that_cannot_be(
    make: Callable[[Path, AsyncOpenAI], Relay],
    error: type[Exception],
    match: str,
    tmp_path: Path,
    client: AsyncOpenAI,
) -> None:
    """What a relay could not send, or must not, is refused when it is made."""
    with pytest.raises(error, match=match):
        make(tmp_path / "agent.db", client)


async def _key() -> str:
    return "key"
