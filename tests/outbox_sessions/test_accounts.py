"""Whose backlog it is: keys that change, and outboxes that name their account."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    ConversationBusy,
    ConversationCache,
    MemoryOutbox,
    Outbox,
    SQLiteOutbox,
)
from cached_session.commands.cli import main
from cached_session.emulator import Emulator, Request
from tests.outbox_sessions.support import QUICK, until, words
from tests.session.support import Elsewhere, new_client, texts, users

OLD, NEW = "sk-old", "sk-new"
PROD = {"account": "prod"}


@asynccontextmanager
async def using(
    emulator: Emulator, outbox: Outbox, conversation: str, key: Any = OLD, **options: Any
) -> AsyncIterator[CachedSession]:
    """A session of a client with a key, left without a wait for the server."""
    settings = {"cache": ConversationCache(), "retry": QUICK, **options}
    async with new_client(emulator, api_key=key) as client:
        session = CachedSession(
            conversation_id=conversation, openai_client=client, outbox=outbox, **settings
        )
        yield session
        await session.aclose()
        await outbox.aclose()


async def accepted_offline(
    emulator: Emulator, outbox: Outbox, *appended: str, key: Any = OLD
) -> str:
    """A conversation that holds "1", and for which more was accepted while the server was away."""
    conversation = Elsewhere(emulator).conversation("1")
    async with using(emulator, outbox, conversation, key) as session:
        assert words(await session.get_items()) == ["1"]
        emulator.stop()
        for text in appended:
            await session.add_items(users(text))
    await until(lambda: len(asyncio.all_tasks()) == 1)
    emulator.start()
    return conversation


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings since the last call."""
    found = [
        record.getMessage()
        for record in caplog.records
        if record.name == "cached_session" and record.levelno >= logging.WARNING
    ]
    caplog.clear()
    return found


class Keys(set[str]):
    """The keys of the requests, from now on, that change something."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        emulator.faults = self._note

    def _note(self, request: Request) -> None:
        if request.method != "GET":
            self.add(str(request.header("authorization")).removeprefix("Bearer "))


NewOutbox = Callable[..., SQLiteOutbox]


async def test_a_new_key_of_the_account_goes_on(
    new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """With `account=`, what the old key accepted is read, sent first, and sent once by the new."""
    with Emulator() as emulator:
        conversation = await accepted_offline(emulator, new_outbox(**PROD), "2", "3")
        async with using(emulator, new_outbox(**PROD), conversation, NEW) as session:
            assert words(await session.get_items()) == ["1", "2", "3"]
            await session.add_items(users("4"))
            await session.flush()
            assert texts(emulator.items(conversation)) == ["1", "2", "3", "4"]
            assert await session.get_items() == emulator.items(conversation)
    assert warned(caplog) == []


@pytest.mark.parametrize(
    ("first", "second", "key"),
    [
        pytest.param({}, {}, NEW, id="another key"),
        pytest.param({}, PROD, OLD, id="an account from now on"),
        pytest.param({}, PROD, NEW, id="an account from now on, and another key"),
        pytest.param(PROD, {}, OLD, id="no account any more"),
        pytest.param(PROD, {"account": "test"}, OLD, id="another account"),
    ],
)
async def test_a_backlog_that_is_not_this_accounts(
    first: dict[str, str],
    second: dict[str, str],
    key: str,
    new_outbox: NewOutbox,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What another account's key accepted is not sent, and is warned of once; `move` moves it."""
    with Emulator() as emulator:
        conversation = await accepted_offline(emulator, new_outbox(**first), "2", "3")
        keys, outbox = Keys(emulator), new_outbox(**second)
        for _ in range(3):
            async with using(emulator, outbox, conversation, key) as session:
                assert words(await session.get_items()) == ["1"]
                await session.flush()
                assert session.stats.sending == "idle"
        [warning] = warned(caplog)
        for part in (conversation, "2 items", f"cached-session outbox move {path} 1"):
            assert part in warning
        assert OLD not in warning
        assert NEW not in warning
        assert keys == set()
        # What the warning says to do.
        monkeypatch.setenv("OPENAI_API_KEY", key)
        command = warning.partition("cached-session ")[2].partition("`")[0].split()
        assert await _command(*command) == 0
        async with using(emulator, outbox, conversation, key) as session:
            await session.add_items(users("4"))
            await session.flush()
        assert texts(emulator.items(conversation)) == ["1", "2", "3", "4"]
        assert keys == {key}


async def _command(*words: str) -> int:
    return await asyncio.to_thread(main, words)


async def test_a_conversation_begun_offline_under_another_key(
    new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A local name of another key's conversation is refused, and it is said whose it is."""
    with Emulator() as emulator:
        emulator.stop()
        async with new_client(emulator, api_key=OLD) as client:
            outbox = new_outbox()
            session = CachedSession(openai_client=client, outbox=outbox, retry=QUICK)
            await session.add_items(users("1"))
            name = session.local_name
            await session.aclose()
            await outbox.aclose()
        assert name is not None
        async with using(emulator, new_outbox(), name, NEW) as session:
            with pytest.raises(Exception, match="does not know it"):
                await session.get_items()
        [warning] = warned(caplog)
        assert name in warning
        assert "1 item " in warning


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_two_keys_at_once(kind: str, new_outbox: NewOutbox) -> None:
    """Sessions with the old and the new key share one order, and read each other's writes."""
    outbox = MemoryOutbox(**PROD) if kind == "memory" else new_outbox(**PROD)
    cache = ConversationCache()
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("0")
        async with (
            using(emulator, outbox, conversation, OLD, cache=cache) as old,
            using(emulator, outbox, conversation, NEW, cache=cache) as new,
        ):
            both = itertools.cycle((old, new))
            for number in range(1, 8):
                await next(both).add_items(users(str(number)))
                expected = list(map(str, range(number + 1)))
                assert words(await old.get_items()) == words(await new.get_items()) == expected
                if number % 3 == 0:
                    await next(both).flush()
            await old.flush()
            assert texts(emulator.items(conversation)) == list(map(str, range(8)))
            assert texts([await new.pop_item()]) == ["7"]
            assert await old.get_items() == await new.get_items() == emulator.items(conversation)


@pytest.mark.parametrize("first", ["with the outbox", "without it"])
async def test_sessions_without_the_outbox_share_the_copy(
    first: str, new_outbox: NewOutbox
) -> None:
    """Sessions of an account's keys read each other's writes where one has no outbox, too."""
    outbox, cache = new_outbox(**PROD), ConversationCache()
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("0")
        async with new_client(emulator, api_key=NEW) as client:
            plain = CachedSession(conversation_id=conversation, openai_client=client, cache=cache)
            if first == "without it":
                await plain.get_items()
            async with (
                using(emulator, outbox, conversation, OLD, cache=cache) as old,
                using(emulator, outbox, conversation, NEW, cache=cache) as new,
            ):
                await old.get_items()
                await new.get_items()
                for number, session in enumerate((old, plain, new, plain, old), 1):
                    await session.add_items(users(str(number)))
                    expected = list(map(str, range(number + 1)))
                    for reader in (old, plain, new):
                        assert words(await reader.get_items()) == expected
                await old.flush()
            assert texts(emulator.items(conversation)) == list(map(str, range(6)))


async def test_a_run_whose_key_is_found_to_be_of_an_account(new_outbox: NewOutbox) -> None:
    """A run keeps its turn where a session with an outbox shows whose copy of it counts."""
    outbox, cache = new_outbox(**PROD), ConversationCache()
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("0")
        async with (
            new_client(emulator, api_key=NEW) as client,
            using(emulator, outbox, conversation, OLD, cache=cache) as old,
        ):
            await old.get_items()
            plain = CachedSession(conversation_id=conversation, openai_client=client, cache=cache)
            async with plain.turn():
                await plain.add_items(users("1"))
                async with using(emulator, outbox, conversation, NEW, cache=cache) as new:
                    assert words(await new.get_items()) == ["0", "1"]
                    with pytest.raises(ConversationBusy):
                        await asyncio.create_task(new.turn(wait=0).__aenter__())
                    async with plain.turn(wait=0):
                        await plain.add_items(users("2"))
            async with old.turn(wait=0):
                assert words(await old.get_items()) == ["0", "1", "2"]


async def test_keys_that_are_not_fixed_have_an_account(new_outbox: NewOutbox) -> None:
    """With `account=`, a client with a key provider finds its own backlog again, and no other's."""

    async def provide() -> str:
        return NEW

    provider: Any = provide
    with Emulator() as emulator:
        conversation = await accepted_offline(emulator, new_outbox(**PROD), "2", key=provider)
        async with using(emulator, new_outbox(account="test"), conversation, provider) as session:
            assert words(await session.get_items()) == ["1"]
            await session.flush()
        async with using(emulator, new_outbox(**PROD), conversation, provider) as session:
            assert words(await session.get_items()) == ["1", "2"]
            await session.flush()
        assert texts(emulator.items(conversation)) == ["1", "2"]


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_a_key_that_changes_while_items_wait(
    kind: str, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """What was accepted before a client's key changed is not sent under the new one."""
    outbox = MemoryOutbox() if kind == "memory" else new_outbox()
    with Emulator() as emulator:
        conversation = Elsewhere(emulator).conversation("1")
        async with new_client(emulator, api_key=OLD) as client:
            session = CachedSession(
                conversation_id=conversation,
                openai_client=client,
                outbox=outbox,
                retry=QUICK,
                cache=ConversationCache(),
            )
            await session.get_items()
            emulator.stop()
            await session.add_items(users("2"))
            await until(lambda: session.stats.sending == "offline")
            keys = Keys(emulator)
            client.api_key = NEW
            emulator.start()
            await session.add_items(users("3"))
            await session.flush()
            assert texts(emulator.items(conversation)) == ["1", "3"]
            assert keys == {NEW}
            client.api_key = OLD
            await session.flush()
            assert texts(emulator.items(conversation)) == ["1", "3", "2"]
            await session.aclose()
    assert any(conversation in warning for warning in warned(caplog))


@pytest.mark.parametrize("key", [OLD, NEW])
async def test_an_account_is_not_shared_across_servers(
    key: str, new_outbox: NewOutbox, emulator: Emulator
) -> None:
    """The same account name on another server, organisation or project is another account."""
    with Emulator() as other:
        conversation = await accepted_offline(other, new_outbox(**PROD), "2")
        keys = Keys(emulator)
        async with using(emulator, new_outbox(**PROD), conversation, key) as session:
            with pytest.raises(Exception, match=r"404|not found"):
                await session.get_items()
        assert keys == set()


@pytest.mark.parametrize("make", [MemoryOutbox, lambda **more: SQLiteOutbox("unused.db", **more)])
@pytest.mark.parametrize(
    ("account", "error"),
    [
        ("", ValueError),
        (" prod", ValueError),
        ("prod\n", ValueError),
        ("x" * 101, ValueError),
        (b"prod", TypeError),
        (7, TypeError),
    ],
)
def test_bad_accounts(account: Any, error: type[Exception], make: Callable[..., Outbox]) -> None:
    """An account is a printable text of 1 to 100 characters."""
    with pytest.raises(error, match="account"):
        make(account=account)


def test_account_is_shown(path: Path) -> None:
    """An outbox says which account it names."""
    assert MemoryOutbox().account is None
    assert SQLiteOutbox(path, account="x" * 100).account == "x" * 100
