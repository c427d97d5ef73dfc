"""Which files an outbox opens, with what permissions, and what it says of the others."""

# The loop of a test has nothing to do while the test works on its own small files.
# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.errors import OutboxError
from cached_session.outbox import SQLiteOutbox
from cached_session.outbox.sqlite.log import SQLiteLog
from tests.outbox.support import ADDRESS, accept, run, says, waiting


class Impatient(SQLiteOutbox):
    """One that waits for locks for a moment only."""

    _busy_timeout = 0.05


def _refused(path: Path, *parts: str) -> None:
    with pytest.raises(OutboxError) as caught:
        Impatient(path)
    says(caught.value, path, *parts)


def _fill(path: Path, *items: bytes) -> None:
    """Makes an outbox with items, and closes it."""

    async def fill() -> None:
        outbox = SQLiteOutbox(path)
        await outbox.transact(accept(*items))
        await outbox.let_go()

    asyncio.run(fill())


async def test_header(path: Path) -> None:
    """The file says whose it is and of which schema, and its commits are on the disk."""
    outbox = SQLiteOutbox(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"csox"),)
        assert other.execute("PRAGMA user_version").fetchone() == (3,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    synchronous = await outbox.transact(
        lambda log: log.store._connection.execute("PRAGMA synchronous").fetchone()
    )
    assert synchronous == (2,)
    await outbox.let_go()


async def test_one_file_by_any_name(path: Path) -> None:
    """Through a link or a relative path it is the same outbox, with the same owners."""
    link = path.parent / "link"
    link.symlink_to(path)
    first = SQLiteOutbox(path)
    second = SQLiteOutbox(os.path.relpath(link))
    assert first.path == second.path == path
    assert await first.transact(lambda log: log.store.claim(ADDRESS))
    assert await second.transact(lambda log: log.store.claim(ADDRESS)) is None
    await first.let_go()
    await second.let_go()


def test_directory(tmp_path: Path) -> None:
    """A directory is no outbox."""
    _refused(tmp_path, "is a directory", "Name a file")


def test_special_file(path: Path) -> None:
    """What is not a regular file is not opened."""
    os.mkfifo(path)
    _refused(path, "not a regular file")


def test_missing_directory(tmp_path: Path) -> None:
    """The directory is to be there."""
    _refused(tmp_path / "missing" / "outbox.db", str(tmp_path / "missing"), "Make it first")
    assert not (tmp_path / "missing").exists()


def test_no_database(path: Path) -> None:
    """A file of another kind is left as it is."""
    path.write_bytes(b"Dear diary, " * 100)
    _refused(path, "is not an SQLite database", "Name another path")
    assert path.read_bytes() == b"Dear diary, " * 100


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE mine (a)", "PRAGMA application_id = 7", "PRAGMA user_version = 7"]
)
def test_other_application(statement: str, path: Path) -> None:
    """Another program's database is left as it is."""
    with closing(sqlite3.connect(path)) as other:
        other.execute(statement)
    before = path.read_bytes()
    _refused(path, "another program", "Name another path")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_newer_schema(path: Path) -> None:
    """A file of a newer release is left to it."""
    _fill(path, b"1")
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 4")
    _refused(path, "newer release", "schema 4", "Update cached-session")


def test_damaged_at_opening(path: Path) -> None:
    """A damaged file is told of when it is opened, if that meets the damage."""
    _fill(path, b"1")
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    _refused(path, "is damaged", "move it away")


async def test_damaged_later(path: Path) -> None:
    """Damage that is met later fails the works that meet it, and is told of in the same words."""
    outbox = SQLiteOutbox(path)
    await outbox.transact(accept(b"1"))
    await outbox.let_go()
    with closing(sqlite3.connect(path)) as other:
        ((page,),) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'")
        (size,) = other.execute("PRAGMA page_size").fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises(OutboxError) as caught:
        await outbox.transact(waiting)
    says(caught.value, path, "is damaged", "move it away")
    await outbox.let_go()


def test_locked_at_opening(path: Path) -> None:
    """Whoever holds the file locked for too long is to be looked for."""
    _fill(path, b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        _refused(path, "locked for longer than 0.05 s", "Look for a process")


async def test_locked_later(path: Path) -> None:
    """A lock that stays fails all works of a group, each with its own error, and nothing else."""
    outbox = Impatient(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        errors = await asyncio.gather(
            *(outbox.transact(accept(b"%d" % n)) for n in range(3)), return_exceptions=True
        )
    for error in errors:
        assert isinstance(error, OutboxError)
        says(error, path, "locked for longer than 0.05 s")
    assert len({id(error) for error in errors}) == 3
    assert await outbox.transact(waiting) == []
    await outbox.let_go()


async def test_disk_full(path: Path) -> None:
    """On a full disk nothing is recorded, and once there is room the outbox goes on."""

    def limit(pages: int):
        # SQLite's own limit is met in the same way as the disk's.
        return lambda log: log.store._connection.execute(f"PRAGMA max_page_count = {pages}")

    def twice(log: SQLiteLog) -> None:
        store = log.store
        store.accept(ADDRESS, [b"small"], 1.0)
        store.accept(ADDRESS, [b"." * 1_000_000], 1.0)

    outbox = SQLiteOutbox(path)
    await outbox.transact(limit(50))
    with pytest.raises(OutboxError) as caught:
        await outbox.transact(twice)
    says(caught.value, path, "disk is full", "Free some space")
    assert await outbox.transact(waiting) == []
    await outbox.transact(limit(1_000_000))
    await outbox.transact(twice)
    assert len(await outbox.transact(waiting)) == 2
    await outbox.let_go()


@pytest.mark.processes
def test_limit_on_file_sizes(path: Path) -> None:
    """Where the system refuses to write, nothing is recorded, and the error says where to look."""
    script = """
import resource
async def main():
    outbox = SQLiteOutbox(path)
    await outbox.transact(lambda log: log.store.accept(address, [b"1"], 1.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    for size in (1_000_000, 10):
        try:
            await outbox.transact(lambda log: log.store.accept(address, [b"." * size], 1.0))
        except OutboxError as error:
            print(error)
    rows = (await outbox.transact(lambda log: log.store.mailbox(address))).rows
    print([len(row.data) for row in rows])
asyncio.run(main())
"""
    error, rows = run(script, path).split("\n")
    says(OutboxError(error), path, "could not be read or written", "limit on file sizes")
    assert rows == "[1, 10]"


async def test_removed_while_open(path: Path) -> None:
    """What would be recorded in a file that nobody will find is refused."""
    outbox = SQLiteOutbox(path)
    await outbox.transact(accept(b"1"))
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(OutboxError) as caught:
        await outbox.transact(accept(b"2"))
    says(caught.value, path, "removed or replaced", "Close the outbox")
    path.with_name("elsewhere").rename(path)
    assert await outbox.transact(waiting) == [b"1"]
    await outbox.let_go()


async def test_tried_again(path: Path) -> None:
    """An outbox that could not be opened again is opened at a later use, once it can be."""
    outbox = SQLiteOutbox(path)
    await outbox.let_go()
    path.unlink()
    path.mkdir()
    with pytest.raises(OutboxError, match="is a directory"):
        await outbox.transact(waiting)
    path.rmdir()
    assert await outbox.transact(waiting) == []
    await outbox.let_go()


async def test_older_schema(path: Path) -> None:
    """A file from before there were turns gets their table, and keeps what is in it."""
    outbox = SQLiteOutbox(path)
    await outbox.transact(accept(b"1"))
    await outbox.let_go()
    with closing(sqlite3.connect(path)) as other:
        other.execute("DROP TABLE turns")
        other.execute("PRAGMA user_version = 1")
    outbox = SQLiteOutbox(path)
    assert await outbox.transact(waiting) == [b"1"]
    ticket = await outbox.transact(lambda log: log.line_up(ADDRESS, None))
    assert ticket.first
    await outbox.let_go()
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (3,)
