"""Works in the outbox's thread: their order, their groups, their failures, their callers."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session.errors import OutboxError
from cached_session.outbox import Log, Outbox, SQLiteOutbox
from tests.outbox.support import ADDRESS, accept, run, waiting


class Held:
    """A work that holds up the outbox's thread until it is let go."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._go = threading.Event()

    def __call__(self, log: Log) -> None:
        self._begun.set()
        assert self._go.wait(30)

    async def holds(self, outbox: SQLiteOutbox) -> asyncio.Task[None]:
        """Begins it, so that the works that are put now form the next group."""
        task = asyncio.create_task(outbox.transact(self))
        await asyncio.to_thread(self._begun.wait, 30)
        return task

    def let_go(self) -> None:
        self._go.set()


def _recorded(path: Path) -> int:
    """How many items somebody else sees."""
    with closing(sqlite3.connect(path)) as other:
        count: int = other.execute("SELECT COUNT(*) FROM items").fetchone()[0]
        return count


async def test_order(on_disk: SQLiteOutbox) -> None:
    """Works are run in the order of the calls."""
    await asyncio.gather(*(on_disk.transact(accept(b"%d" % n)) for n in range(50)))
    assert await on_disk.transact(waiting) == [b"%d" % n for n in range(50)]


async def test_group_commit(on_disk: SQLiteOutbox) -> None:
    """All that waits is committed at once, before any of the callers hears of it."""
    held = Held()
    first = await held.holds(on_disk)
    calls = [asyncio.create_task(on_disk.transact(accept(b"%d" % n))) for n in range(5)]
    # Within the group, the last one: nothing of those before it is committed.
    last = asyncio.create_task(on_disk.transact(lambda _: _recorded(on_disk.path)))
    await asyncio.sleep(0)
    held.let_go()
    await first
    await calls[0]
    assert _recorded(on_disk.path) == 5
    await asyncio.gather(*calls)
    assert await last == 0


async def test_one_fails(on_disk: SQLiteOutbox) -> None:
    """A work that raises is undone alone, and its own exception reaches its caller."""

    def fail(log: Log) -> None:
        accept(b"undone")(log)
        raise LookupError("mine")

    held = Held()
    first = await held.holds(on_disk)
    calls = asyncio.gather(
        on_disk.transact(accept(b"1")),
        on_disk.transact(fail),
        on_disk.transact(accept(b"2")),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    held.let_go()
    await first
    _, error, _ = await calls
    assert isinstance(error, LookupError)
    assert str(error) == "mine"
    assert await on_disk.transact(waiting) == [b"1", b"2"]


async def test_wrong_statement(on_disk: SQLiteOutbox) -> None:
    """An error of SQLite in a work is an OutboxError that does not show the work's values."""
    with pytest.raises(OutboxError) as caught:
        await on_disk.transact(lambda log: log.store.accept(ADDRESS, [b"secret"], None))
    assert "SQLITE_CONSTRAINT" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert await on_disk.transact(waiting) == []


async def test_cancelled_caller(on_disk: SQLiteOutbox) -> None:
    """A cancelled caller hears so at once, and its work is run nevertheless."""
    held = Held()
    first = await held.holds(on_disk)
    call = asyncio.create_task(on_disk.transact(accept(b"1")))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    held.let_go()
    await first
    assert await on_disk.transact(waiting) == [b"1"]


def test_closed_loop(on_disk: SQLiteOutbox) -> None:
    """A work whose loop is gone is run, and the outbox goes on."""
    held = Held()

    async def leave() -> None:
        first = await held.holds(on_disk)
        asyncio.get_running_loop().call_soon(first.cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.gather(first, on_disk.transact(accept(b"1")))

    asyncio.run(leave())
    held.let_go()
    assert asyncio.run(on_disk.transact(waiting)) == [b"1"]


def test_loops_and_threads(outbox: Outbox) -> None:
    """Several threads with loops of their own share an outbox; nothing is lost."""

    async def write(name: int) -> None:
        await asyncio.gather(*(outbox.transact(accept(b"%d.%02d" % (name, n))) for n in range(20)))

    threads = [
        threading.Thread(target=lambda name=name: asyncio.run(write(name))) for name in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = asyncio.run(outbox.transact(waiting))
    assert sorted(found) == [b"%d.%02d" % (name, n) for name in range(4) for n in range(20)]
    for name in range(4):
        mine = [item for item in found if item.startswith(b"%d." % name)]
        assert mine == sorted(mine)


async def test_close_and_reopen(path: Path) -> None:
    """Closing finishes what waits and leaves one file; the next use opens it again."""
    outbox = SQLiteOutbox(path)
    held = Held()
    first = await held.holds(outbox)
    call = asyncio.create_task(outbox.transact(accept(b"1")))
    await asyncio.sleep(0)
    closes = [asyncio.create_task(outbox.let_go()) for _ in range(2)]
    await asyncio.sleep(0)
    # Comes after the close, and so after the work before it.
    behind = asyncio.create_task(outbox.transact(waiting))
    await asyncio.sleep(0)
    held.let_go()
    await asyncio.gather(first, call, *closes)
    assert await behind == [b"1"]
    await outbox.let_go()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert await outbox.transact(waiting) == [b"1"]
    await outbox.let_go()
    await outbox.let_go()


async def test_dropped(path: Path) -> None:
    """An outbox that is dropped ends its thread and removes its owner's file, unasked."""
    before = set(threading.enumerate())
    outbox = SQLiteOutbox(path)

    def fail(log: Log) -> None:
        accept(b"undone")(log)
        raise LookupError("mine")

    with pytest.raises(LookupError):
        await outbox.transact(fail)
    with pytest.raises(OutboxError):
        await outbox.transact(lambda log: log.store.accept(ADDRESS, [b"1"], None))
    # Once the thread has run this, it holds nothing of those before.
    assert await outbox.transact(waiting) == []
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(outbox)
    gc.disable()
    try:
        del outbox
        # Without the garbage collector: nothing refers to it in a circle.
        assert gone() is None
    finally:
        gc.enable()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.processes
def test_end_without_close(path: Path) -> None:
    """A process that ends without closing has what it accepted recorded, and Python does not warn.

    The log says what a `MemoryOutbox` loses, and nothing of the file.
    """
    script = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
async def main():
    # A busy machine's slow steps, of which asyncio warns in this mode, are nothing to warn of here.
    asyncio.get_running_loop().slow_callback_duration = 60
    outbox, memory = SQLiteOutbox(path), MemoryOutbox()
    await outbox.transact(accept(b"1"))
    await memory.transact(accept(b"1"))
    call = asyncio.ensure_future(outbox.transact(accept(b"2")))
    await asyncio.sleep(0)
    call.cancel()
    return outbox, memory
kept = asyncio.run(main())
"""
    [line] = run(script, path, options=("-X", "dev", "-W", "error::ResourceWarning")).splitlines()
    assert line.startswith("WARNING ")
    assert "a MemoryOutbox ended with 1 item in it" in line
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert _recorded(path) == 2


class Preempted(asyncio.SelectorEventLoop):
    """Has a busy machine stop the first thread that tells it something, until others have."""

    def __init__(self) -> None:
        super().__init__()
        self._stopped: threading.Thread | None = None
        self._others = threading.Semaphore(0)

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """Tells it something."""
        if self._stopped is None:
            self._stopped = threading.current_thread()
            for _ in range(2):
                # Long enough for one that overtakes; one that waits its turn never comes.
                self._others.acquire(timeout=0.2)
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        if threading.current_thread() is not self._stopped:
            self._others.release()
        return handle


def test_who_let_go_first_hears_first(path: Path) -> None:
    """Whoever lets go of the file hears of it before those who used it again, and closed it."""
    told = []

    async def use() -> None:
        outbox = SQLiteOutbox(path)

        async def let_go(who: str) -> None:
            await outbox.let_go()
            told.append(who)

        first = asyncio.create_task(let_go("first"))
        await asyncio.sleep(0)
        await outbox.transact(accept(b"1"))
        await let_go("second")
        await first

    with asyncio.Runner(loop_factory=Preempted) as runner:
        runner.run(use())
    assert told == ["first", "second"]


@pytest.mark.processes
def test_fork(path: Path) -> None:
    """A forked child is told to make an outbox of its own, and leaves the parent's alone."""
    script = """
async def use(outbox):
    try:
        await outbox.transact(accept(b"1"))
    except OutboxError as error:
        print("forked" in str(error), "in the child" in str(error), flush=True)
outbox, memory = SQLiteOutbox(path), MemoryOutbox()
child = os.fork()
if not child:
    asyncio.run(use(outbox))
    asyncio.run(use(memory))
    asyncio.run(outbox.let_go())
    own = SQLiteOutbox(path)
    asyncio.run(use(own))
    del outbox
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
asyncio.run(use(outbox))
print(len(asyncio.run(outbox.transact(lambda log: log.mailbox(address))).rows))
"""
    # Python warns of a fork with threads, which is what this is about.
    printed = run(script, path, options=("-W", "ignore::DeprecationWarning"))
    assert printed.split("\n") == ["True True", "True True", "3", "2"]
