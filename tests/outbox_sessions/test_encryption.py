"""Outboxes that record encrypted what was said: what stands in them, and who can read it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from cached_session import (
    Cipher,
    OutboxAdmin,
    OutboxError,
    PostgresOutbox,
    SQLiteOutbox,
    fernet_cipher,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from tests.outbox_sessions.support import QUICK, Process, batches, raised, until, words
from tests.outbox_sessions.workers import Setting, worker
from tests.postgres import Server
from tests.session.support import Elsewhere, sent, texts, users

OLD, NEW, OTHER = (Fernet.generate_key() for _ in range(3))

LOST = Fault(FaultKind.RESET_BEFORE_COMMIT)


class Place(NamedTuple):
    """Where outboxes record.

    Attributes:
        new: Makes an outbox there, as another process would.
        columns: What stands there, by table and column.
        raw: All bytes that stand there.
    """

    new: Callable[..., Any]
    columns: Callable[[], dict[str, bytes]]
    raw: Callable[[], bytes]


def in_file(path: Path) -> Place:
    def columns() -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.text_factory = bytes
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for (name,) in connection.execute(tables).fetchall():
                cursor = connection.execute(f"SELECT * FROM {name.decode()}")
                names = [column[0] for column in cursor.description]
                for row in cursor:
                    for column, value in zip(names, row, strict=True):
                        key = f"{name.decode()}.{column}"
                        value = value if isinstance(value, bytes) else str(value).encode()
                        found[key] = found.get(key, b"") + value
        return found

    def raw() -> bytes:
        return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))

    return Place(lambda **options: SQLiteOutbox(path, **options), columns, raw)


def in_database(address: str) -> Place:
    def columns() -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with psycopg.connect(address) as connection:
            tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
            for (name,) in connection.execute(tables, ["cached_session"]).fetchall():
                cursor = connection.execute(f"SELECT * FROM cached_session.{name}")
                assert cursor.description is not None
                names = [column.name for column in cursor.description]
                for row in cursor:
                    for column, value in zip(names, row, strict=True):
                        key = f"{name}.{column}"
                        value = value if isinstance(value, bytes) else str(value).encode()
                        found[key] = found.get(key, b"") + value
        return found

    return Place(
        lambda **options: PostgresOutbox(address, lease=3.0, **options),
        columns,
        lambda: b"".join(columns().values()),
    )


@pytest.fixture(params=["file", pytest.param("postgres", marks=pytest.mark.processes)])
def place(request: pytest.FixtureRequest, path: Path) -> Iterator[Place]:
    """A file, or a database, on which a test makes outboxes; they are closed at the end."""
    if request.param == "file":
        where = in_file(path)
    else:
        server: Server = request.getfixturevalue("postgres")
        where = in_database(server.with_tables())
    made: list[Any] = []

    def new(*keys: bytes, slow: Cipher | None = None, **options: Any) -> Any:
        made.append(where.new(cipher=fernet_cipher(*keys) if keys else slow, **options))
        return made[-1]

    yield where._replace(new=new)
    for outbox in made:
        asyncio.run(outbox.let_go())


def secrets(found: bytes) -> set[str]:
    """Which of the secrets stand there, as text or in hexadecimal digits."""
    names = ("said", "role", "output", "argument", "metadata", "withdrawn")
    hidden = {name: f"canary {name}".encode() for name in names}
    return {name for name, text in hidden.items() if text in found or text.hex().encode() in found}


@pytest.mark.parametrize("keys", [(), (OLD,)], ids=["plain", "encrypted"])
async def test_what_was_said_stands_nowhere(
    keys: tuple[bytes, ...], place: Place, emulator: Emulator
) -> None:
    """With a cipher no byte of an item stands in a file, its journal, or any column of a table.

    Without one it does, in the columns that are named here, so that the look is one.
    """
    said: list[Any] = [
        {"role": "user", "content": "canary said"},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "look",
            "arguments": '{"where": "canary argument"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "canary output"},
    ]
    waits: list[Any] = [
        {"role": "canary role", "content": "canary said", "metadata": {"a": "canary metadata"}},
        {"role": "user", "content": "canary withdrawn"},
    ]
    async with Process(emulator, place.new(*keys)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.add_items(said)
        await session.flush()
        await session.get_items()
        # What has landed is in the window, and what may have landed in the doubt.
        emulator.clear_log()
        emulator.faults = lambda request: LOST if is_append(request) else None
        await session.add_items(said[:1])
        await until(lambda: batches(emulator) > 2)
        await session.add_items(waits)
        found, raw = place.columns(), place.raw()
        await session.pop_item()
        # PostgreSQL keeps what was withdrawn last, for one who has lost the answer.
        found = {name: found.get(name, b"") + more for name, more in place.columns().items()}
        raw += place.raw()
        await raised(session.aclose(timeout=0))
    raw += place.raw()
    emulator.faults = None
    holding = {name for name, value in found.items() if secrets(value)}
    if keys:
        assert not holding
        assert not secrets(raw)
        return
    kept = {"owners.item"} if "owners.item" in found else set()
    assert holding == {"items.data", "window_items.data", "conversations.doubt", *kept}
    assert secrets(raw) == {"said", "role", "output", "argument", "metadata", "withdrawn"}
    assert secrets(found["window_items.data"]) == {"said", "output", "argument"}
    assert "said" in secrets(found["conversations.doubt"])


async def offline(
    emulator: Emulator, outbox: Any, *words: str, conversation: str | None = None
) -> str:
    """A conversation of which something waits that a process has recorded that is gone."""
    conversation = conversation or Elsewhere(emulator).conversation("first")
    emulator.faults = lambda request: LOST if is_append(request) else None
    # It has nothing in flight at its end, which the server might carry out without a fault.
    once = dataclasses.replace(QUICK, initial_delay=600.0, max_delay=600.0)
    async with Process(emulator, outbox) as process:
        session = process.session(conversation, retry=once)
        await session.get_items()
        for word in words:
            await session.add_items(users(word))
        await until(lambda: session.stats.retries > 0)
        await raised(session.aclose(timeout=0))
    emulator.faults = None
    return conversation


async def test_what_waited_unencrypted(place: Place, emulator: Emulator) -> None:
    """An outbox that has begun without a cipher goes on with one: old and new is sent in order."""
    conversation = await offline(emulator, place.new(), "plain")
    before = secrets(place.raw())
    assert await offline(emulator, place.new(OLD), "canary said", conversation=conversation)
    assert before == secrets(place.raw()) == set()
    async with Process(emulator, place.new(OLD)) as process:
        session = process.session(conversation)
        assert words(await session.get_items()) == ["first", "plain", "canary said"]
        await session.flush()
        await session.aclose()
    assert texts(emulator.items(conversation)) == ["first", "plain", "canary said"]


@pytest.mark.parametrize(
    ("keys", "parts"),
    [((), ("without a cipher", "cipher=")), ((OTHER,), ("cannot be decrypted", "Add the key"))],
    ids=["none", "wrong"],
)
async def test_who_has_not_the_key(
    keys: tuple[bytes, ...],
    parts: tuple[str, ...],
    place: Place,
    emulator: Emulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without the key a conversation raises, and names place and remedy; others go on.

    Nothing of it is sent, changed or held on to, and whoever has the key sends it.
    """
    conversation = await offline(emulator, place.new(OLD), "a", "b")
    free = Elsewhere(emulator).conversation("free")
    async with Process(emulator, place.new(*keys)) as process:
        session, other = process.session(conversation), process.session(free)
        emulator.clear_log()
        for call in (session.get_items, session.pop_item, session.flush, session.clear_session):
            error = await raised(call())
            assert isinstance(error, OutboxError), call
            assert error.conversation_id == conversation
            for part in (*parts, "All of it is kept", repr(process.outbox).split("'")[1]):
                assert part in str(error)
        assert isinstance(await raised(session.add_items(users("c"))), OutboxError)
        await other.add_items(users("goes on"))
        await other.flush()
        assert texts(emulator.items(free)) == ["free", "goes on"]
        # What nobody sends, others would: it is told of once that this one cannot.
        await until(lambda: any("not adopted" in one.message for one in caplog.records))
        assert batches(emulator) == 1
        async with Process(emulator, place.new(OLD)) as keeper:
            theirs = keeper.session(conversation)
            assert words(await theirs.get_items()) == ["first", "a", "b"]
            await theirs.flush(10)
            await theirs.aclose()
        assert texts(emulator.items(conversation)) == ["first", "a", "b"]
        await session.aclose()
        await other.aclose()
    told = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert ["not adopted" in one.getMessage() for one in told] == [True]


async def test_why_what_cannot_be_read_is_left(place: Place, emulator: Emulator) -> None:
    """Of what is left for want of the key it is said that it was not read, and not who has it."""
    conversation = await offline(emulator, place.new(OLD), "a")
    async with Process(emulator, place.new(OTHER)) as process:
        session = process.session(conversation)
        assert isinstance(await raised(session.get_items()), OutboxError)
        await session.aclose()
        left = await process.outbox.aclose()
        assert [(each.items, each.reason) for each in left.conversations] == [
            (1, "no session here was on it")
        ]
        session = process.session(conversation)
        assert isinstance(await raised(session.get_items()), OutboxError)
        left = await process.outbox.aclose()
        assert [(each.items, each.reason) for each in left.conversations] == [
            (1, "it was not read here")
        ]
        await session.aclose()


async def test_rotation(place: Place, emulator: Emulator) -> None:
    """A new key comes first and the old one stays behind it, until what waited is sent."""
    conversation = await offline(emulator, place.new(OLD), "old")
    await offline(emulator, place.new(NEW, OLD), "new", conversation=conversation)
    async with Process(emulator, place.new(NEW, OLD)) as process:
        session = process.session(conversation)
        assert words(await session.get_items()) == ["first", "old", "new"]
        await session.flush()
        await session.aclose()
    # The old key is gone, and nothing needs it.
    async with Process(emulator, place.new(NEW)) as process:
        session = process.session(conversation)
        assert texts(await session.get_items()) == ["first", "old", "new"]
        await session.aclose()


async def test_a_window_whose_key_is_gone(place: Place, emulator: Emulator) -> None:
    """What is kept of a conversation under a key that is gone is read anew, and kept anew."""
    conversation = Elsewhere(emulator).conversation("1", "2")
    for key in (OLD, NEW):
        async with Process(emulator, place.new(key)) as process:
            session = process.session(conversation, max_staleness=math.inf)
            emulator.clear_log()
            assert texts(await session.get_items()) == ["1", "2"]
            assert sent(emulator) == ["GET items"]
            await session.aclose()
    async with Process(emulator, place.new(NEW)) as process:
        session = process.session(conversation, max_staleness=math.inf)
        emulator.clear_log()
        assert texts(await session.get_items()) == ["1", "2"]
        assert sent(emulator) == []
        await session.aclose()


async def test_a_lost_key_of_what_is_noted(place: Place, emulator: Emulator) -> None:
    """Where only what is noted of requests needs a lost key, that is listed, and is removed."""
    conversation = Elsewhere(emulator).conversation()
    lost = [LOST]
    emulator.faults = lambda request: lost.pop() if lost and is_append(request) else None
    # Nothing else is left of the conversation.
    async with Process(emulator, place.new(OLD, max_window_bytes=0)) as process:
        session = process.session(conversation)
        await session.add_items(users("a"))
        await session.flush()
        await session.aclose()
    async with Process(emulator, place.new(NEW)) as process:
        session = process.session(conversation)
        assert isinstance(await raised(session.get_items()), OutboxError)
        where = repr(process.outbox).split("'")[1]
        async with OutboxAdmin(where, cipher=fernet_cipher(NEW)) as admin:
            [found] = await admin.backlogs()
            assert (found.conversation_id, found.items, found.window) == (conversation, 0, 0)
            assert await admin.unreadable(found.number)
            assert await admin.discard(found.number) == 0
            assert await admin.backlogs() == []
        assert texts(await session.get_items()) == ["a"]
        await session.aclose()


async def test_two_with_the_same_keys(place: Place, emulator: Emulator) -> None:
    """Two processes with the same keys have one order, and read what the other one recorded."""
    conversation = Elsewhere(emulator).conversation()
    async with (
        Process(emulator, place.new(OLD)) as one,
        Process(emulator, place.new(OLD)) as two,
    ):
        a, b = one.session(conversation), two.session(conversation)
        for number in range(10):
            await a.add_items(users(f"a {number}"))
            await b.add_items(users(f"b {number}"))
            expected = [f"{name} {n}" for n in range(number + 1) for name in "ab"]
            assert words(await a.get_items()) == words(await b.get_items()) == expected
        await a.flush()
        await b.flush()
        assert texts(emulator.items(conversation)) == expected
        await a.aclose()
        await b.aclose()


async def test_one_that_lacks_the_other_s_key(place: Place, emulator: Emulator) -> None:
    """Who cannot read what another one has recorded meanwhile loses nothing of it, and says so.

    What he records behind it is recorded, and what he would take back stays where it was.
    """
    conversation = Elsewhere(emulator).conversation("first")
    async with (
        Process(emulator, place.new(OLD)) as old,
        Process(emulator, place.new(NEW, OLD)) as new,
    ):
        a, b = old.session(conversation), new.session(conversation)
        hangs = Fault(FaultKind.HANG)
        emulator.faults = lambda request: hangs if is_append(request) else None
        emulator.clear_log()
        await a.get_items()
        await b.get_items()
        await a.add_items(users("a"))
        # From here on its sender waits, and reads nothing.
        await until(lambda: batches(emulator) > 0)
        await b.add_items(users("b"))
        assert await raised(a.add_items(users("c"))) is None
        emulator.faults = None
        emulator.stop()
        emulator.start()
        assert "cannot be decrypted" in str(await raised(a.flush()))
        await b.add_items(users("d"))
        for call in (a.pop_item, a.get_items, a.flush):
            assert "cannot be decrypted" in str(await raised(call())), call
        assert words(await b.get_items()) == ["first", "a", "b", "c", "d"]
        await a.aclose()
        await old.outbox.aclose()
        await b.flush()
        assert texts(emulator.items(conversation)) == ["first", "a", "b", "c", "d"]
        await b.aclose()


@pytest.mark.parametrize("keys", [(), (OLD,)], ids=["without a cipher", "without the key"])
async def test_what_cannot_be_read_is_not_taken_out(
    keys: tuple[bytes, ...], place: Place, emulator: Emulator
) -> None:
    """Who would take back what another one has recorded, and cannot read it, leaves it alone.

    Recorded anew it would stand behind what came meanwhile, or be lost with the process.
    """
    conversation = Elsewhere(emulator).conversation("first")
    async with (
        Process(emulator, place.new(*keys)) as old,
        Process(emulator, place.new(NEW, *keys)) as new,
    ):
        a, b = old.session(conversation), new.session(conversation)
        hangs = Fault(FaultKind.HANG)
        emulator.faults = lambda request: hangs if is_append(request) else None
        emulator.clear_log()
        await a.get_items()
        await b.get_items()
        await a.add_items(users("a"))
        # From here on its sender waits, and reads nothing.
        await until(lambda: batches(emulator) > 0)
        await b.add_items(users("b"))
        async with OutboxAdmin(repr(new.outbox).split("'")[1]) as admin:
            before = await admin.waiting(conversation)
            assert "All of it is kept" in str(await raised(a.pop_item()))
            assert await admin.waiting(conversation) == before
        emulator.faults = None
        emulator.stop()
        emulator.start()
        await a.aclose()
        await old.outbox.aclose()
        await b.flush()
        assert texts(emulator.items(conversation)) == ["first", "a", "b"]
        await b.aclose()


class Slow:
    """A cipher that says when it is to decrypt something of others, and waits before it cannot."""

    def __init__(self) -> None:
        self._own = Fernet(OLD)
        self.asked, self.go_on = threading.Event(), threading.Event()

    def encrypt(self, data: bytes, /) -> bytes:
        return self._own.encrypt(data)

    def decrypt(self, data: bytes, /) -> bytes:
        try:
            return self._own.decrypt(data)
        except InvalidToken:
            self.asked.set()
            self.go_on.wait(20)
            raise


async def test_what_cannot_be_read_keeps_its_place(place: Place, emulator: Emulator) -> None:
    """What somebody would take back, and cannot read, stays before what is recorded meanwhile."""
    conversation = Elsewhere(emulator).conversation("first")
    cipher = Slow()
    slow = place.new(slow=cipher)
    async with Process(emulator, slow) as old, Process(emulator, place.new(NEW, OLD)) as new:
        a, b = old.session(conversation), new.session(conversation)
        hangs = Fault(FaultKind.HANG)
        emulator.faults = lambda request: hangs if is_append(request) else None
        emulator.clear_log()
        await a.get_items()
        await b.get_items()
        await a.add_items(users("a"))
        await until(lambda: batches(emulator) > 0)
        await b.add_items(users("b"))
        popping = asyncio.create_task(raised(a.pop_item()))
        await until(cipher.asked.is_set)
        recording = asyncio.create_task(b.add_items(users("c")))
        if not isinstance(slow, SQLiteOutbox):
            # A file is locked meanwhile.
            await recording
        cipher.go_on.set()
        await recording
        assert "cannot be decrypted" in str(await popping)
        emulator.faults = None
        emulator.stop()
        emulator.start()
        await a.aclose()
        await old.outbox.aclose()
        await b.flush()
        assert texts(emulator.items(conversation)) == ["first", "a", "b", "c"]
        await b.aclose()


@pytest.mark.processes
async def test_a_killed_process(path: Path, emulator: Emulator) -> None:
    """What a killed process had recorded encrypted is sent by the next one, each item once."""
    retry = {"initial_delay": 0.01, "max_delay": 0.05}
    conversation = Elsewhere(emulator).conversation("first")
    its = Setting(str(path), emulator.base_url, conversation, retry, keys=(OLD,))
    async with worker(its) as child:
        fault = Fault(FaultKind.RESET_AFTER_COMMIT)
        emulator.faults = lambda request: fault if is_append(request) else None
        for number in range(3):
            await child.call("add_items", users(f"canary said {number}"))
        await until(lambda: batches(emulator) > 0)
        child.kill()
    emulator.faults = None
    assert not secrets(in_file(path).raw())
    expected = ["first", *(f"canary said {number}" for number in range(3))]
    async with Process(emulator, SQLiteOutbox(path, cipher=fernet_cipher(OLD))) as process:
        session = process.session(conversation)
        assert words(await session.get_items()) == expected
        await session.flush()
        await session.aclose()
    assert texts(emulator.items(conversation)) == expected


class Odd:
    """A cipher that fails as somebody's own may."""

    def __init__(self) -> None:
        self.works = True

    def encrypt(self, data: bytes, /) -> bytes:
        if not self.works:
            raise ConnectionError("canary said")
        return data[::-1]

    def decrypt(self, data: bytes, /) -> bytes:
        return data[::-1]


async def test_a_cipher_of_one_s_own(path: Path, emulator: Emulator) -> None:
    """Any object with the two methods is one; where it cannot encrypt, nothing is recorded."""
    cipher = Odd()
    async with Process(emulator, SQLiteOutbox(path, cipher=cipher)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.add_items(users("canary said"))
        await session.flush()
        assert not secrets(in_file(path).raw())
        cipher.works = False
        error = await raised(session.add_items(users("lost")))
        assert isinstance(error, OutboxError)
        assert "could not encrypt (ConnectionError), and what it was given was not" in str(error)
        assert "canary" not in str(error)
        cipher.works = True
        assert texts(await session.get_items()) == ["canary said"]
        await session.aclose()


async def test_a_cipher_that_fails_while_something_waits(
    path: Path, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the sender cannot encrypt, what waits is kept, and nothing else is said of it."""
    cipher = Odd()
    async with Process(emulator, SQLiteOutbox(path, cipher=cipher)) as process:
        session = process.session(Elsewhere(emulator).conversation())
        await session.get_items()
        emulator.faults = lambda request: LOST if is_append(request) else None
        await session.add_items(users("canary said"))
        cipher.works = False
        error = str(await raised(session.flush()))
        told = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
        assert len(told) == 1
        for said in (error, *told):
            assert "sending failed, 1 item is recorded and not known to be on the server" in said
            assert "could not encrypt (ConnectionError)" in said
            assert "nothing was recorded" not in said
        emulator.faults, cipher.works = None, True
        await session.flush()
        await session.aclose()


@pytest.mark.parametrize(
    "wrong", ["key", b"key", 1, object()], ids=["str", "bytes", "int", "object"]
)
def test_what_is_no_cipher(wrong: Any, path: Path) -> None:
    """An outbox says at once that it was not given a cipher, and quotes nothing."""
    with pytest.raises(TypeError, match=r"cipher must have .*; not (str|bytes|int|object)$"):
        SQLiteOutbox(path, cipher=wrong)
    assert not path.exists()


def test_fernet_keys() -> None:
    """Keys are str or bytes; one that is none is told by its place, and none is quoted."""
    cipher: Cipher = fernet_cipher(NEW.decode(), OLD)
    assert isinstance(cipher, MultiFernet)
    assert cipher.decrypt(fernet_cipher(OLD).encrypt(b"a")) == b"a"
    for wrong in ("secret", b"secret", 1, None, "s\u00e9cret"):
        with pytest.raises(ValueError, match=r"keys\[1\] is no Fernet key") as raising:
            fernet_cipher(OLD, wrong)  # type: ignore[arg-type]
        assert "cret" not in str(raising.value)
    with pytest.raises(ValueError, match="at least one"):
        fernet_cipher()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `cryptography` the error says what to install, and all else works."""
    monkeypatch.setitem(__import__("sys").modules, "cryptography.fernet", None)
    with pytest.raises(ImportError, match=r"pip install \"cached-session\[encryption\]\""):
        fernet_cipher(OLD)
