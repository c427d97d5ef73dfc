"""Who may read and write the files of an outbox."""

# The loop of a test has nothing to do while the test works on its own small files.
# ruff: noqa: ASYNC240

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.commands.cli import main
from cached_session.errors import OutboxError
from cached_session.outbox import SQLiteOutbox
from cached_session.outbox.sqlite import file
from cached_session.outbox.sqlite.schema import APPLICATION_ID
from tests.outbox.support import accept, run, says


class Impatient(SQLiteOutbox):
    """One that waits for locks for a moment only."""

    _busy_timeout = 0.05


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _database(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)


async def test_permissions(path: Path) -> None:
    """Nobody but the user may read any of the files, whatever the umask."""
    before = os.umask(0)
    try:
        outbox = SQLiteOutbox(path)
        await outbox.transact(accept(b"1"))
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()}
    assert {f"{path.name}-wal", f"{path.name}-shm"} < set(modes)
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
    await outbox.let_go()


async def test_wider_permissions_are_narrowed(path: Path) -> None:
    """A file that others could read is the user's alone once it is an outbox."""
    path.touch()
    path.chmod(0o666)
    outbox = SQLiteOutbox(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await outbox.transact(accept(b"1"))
    await outbox.let_go()


async def test_wider_permissions_of_an_outbox_in_use(path: Path) -> None:
    """An outbox that others could read is narrowed, and so is what SQLite keeps beside it."""
    first = SQLiteOutbox(path)
    await first.transact(accept(b"1"))
    parts = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    for part in parts:
        part.chmod(0o664)
    second = SQLiteOutbox(path)
    assert [_mode(part) for part in parts] == [0o600] * 3
    await first.let_go()
    await second.let_go()


async def test_files_beside_a_wider_one_are_not_wider(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outbox that others could read is narrowed before SQLite makes files like it beside it."""
    await SQLiteOutbox(path).let_go()
    path.chmod(0o666)
    modes: list[int] = []
    real = file.connect

    def connect(name: str, *, timeout: float) -> sqlite3.Connection:
        if Path(name).name == path.name:  # its owner has a file of its own beside it
            modes.append(_mode(Path(name)))
        return real(name, timeout=timeout)

    monkeypatch.setattr(file, "connect", connect)
    await SQLiteOutbox(path).let_go()
    assert modes == [0o600]


@pytest.mark.processes
async def test_a_look_ends_no_lock(path: Path) -> None:
    """What looks whether a file is an outbox leaves the locks of this process on it."""
    _database(path, f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 1")
    path.chmod(0o666)
    script = """
import sqlite3
try:
    sqlite3.connect(path, timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
"""
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxError, match="was locked"):
            Impatient(path)
        assert _mode(path) == 0o600
        assert run(script, path) == "database is locked"


async def test_an_empty_database_becomes_the_user_s_alone(path: Path) -> None:
    """A database without anything in it becomes an outbox, and is narrowed like one."""
    _database(path, "PRAGMA journal_mode = WAL")
    path.chmod(0o644)
    assert path.stat().st_size > 0
    outbox = SQLiteOutbox(path)
    await outbox.transact(accept(b"1"))
    assert {_mode(Path(f"{path}{suffix}")) for suffix in ("", "-wal", "-shm")} == {0o600}
    await outbox.let_go()


def _text(path: Path) -> None:
    path.write_text("Dear diary,\n" * 100)


def _short_text(path: Path) -> None:
    path.write_text("Read me.\n")


def _random(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def _foreign(path: Path) -> None:
    _database(path, "CREATE TABLE mine (a)")


def _foreign_wal(path: Path) -> None:
    _database(path, "PRAGMA journal_mode = WAL", "CREATE TABLE mine (a)")


def _newer(path: Path) -> None:
    _database(path, f"PRAGMA application_id = {APPLICATION_ID}", "PRAGMA user_version = 4")


@pytest.mark.parametrize("through_link", [False, True], ids=["itself", "link"])
@pytest.mark.parametrize("make", [_text, _short_text, _random, _foreign, _foreign_wal, _newer])
def test_what_is_refused_is_left_as_it_is(
    make: Callable[[Path], None], through_link: bool, path: Path
) -> None:
    """A file that is not an outbox of this release keeps its content and its permissions."""
    make(path)
    path.chmod(0o664)
    before = path.read_bytes()
    name = path
    if through_link:
        name = path.parent / "link"
        name.symlink_to(path)
    with pytest.raises(OutboxError, match="it was left as it is"):
        SQLiteOutbox(name)
    assert main(["outbox", "list", str(name)]) == 1
    assert _mode(path) == 0o664
    assert path.read_bytes() == before
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, name.name}


def test_what_a_foreign_database_has_beside_it_is_left_as_it_is(path: Path) -> None:
    """The files of a database in use by another program keep their permissions, too."""
    parts = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE mine (a)")
        for part in parts:
            part.chmod(0o664)
        before = [part.read_bytes() for part in parts[:2]]
        with pytest.raises(OutboxError, match="it was left as it is"):
            SQLiteOutbox(path)
        assert [_mode(part) for part in parts] == [0o664] * 3
        assert [part.read_bytes() for part in parts[:2]] == before


@pytest.mark.processes
@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user, which only root can")
@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("directory", "cannot be opened"),
        ("file", "cannot be opened"),
        ("others' file", "can be read by others"),
        ("beside it", "cannot be written"),
        ("read-only", "cannot be written"),
    ],
)
def test_no_permission(case: str, what: str) -> None:
    """Where the user may not write, the error says what he needs."""
    # Not below `tmp_path`, which no other user can reach.
    script = """
import shutil, tempfile
case = sys.argv[2]
directory = tempfile.mkdtemp()
path = os.path.join(directory, "outbox.db")
try:
    os.chmod(directory, 0o777 if case in ("file", "read-only") else 0o755)
    if case != "directory":
        asyncio.run(SQLiteOutbox(path).let_go())
    if case == "others' file":
        os.chmod(path, 0o666)
    if case in ("beside it", "read-only"):
        os.chown(path, 65534, 65534)
    if case == "read-only":
        os.chmod(path, 0o400)
    os.seteuid(65534)
    try:
        SQLiteOutbox(path)
    except OutboxError as error:
        print(path)
        print(error)
    os.seteuid(0)
finally:
    shutil.rmtree(directory)
"""
    path, error = run(script, "", case).split("\n")
    says(OutboxError(error), Path(path), what)
