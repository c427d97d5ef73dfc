"""Who may read and write the files of an outbox."""

# The loop of a test has nothing to do while the test works on its own small files.
# ruff: noqa: ASYNC240

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cached_session.errors import OutboxError
from cached_session.outbox import SQLiteOutbox
from tests.outbox.support import accept, run, says


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
    await outbox.close()


async def test_wider_permissions_are_narrowed(path: Path) -> None:
    """A file that others could read is the user's alone once it is an outbox."""
    path.touch()
    path.chmod(0o666)
    outbox = SQLiteOutbox(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await outbox.transact(accept(b"1"))
    await outbox.close()


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
        asyncio.run(SQLiteOutbox(path).close())
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
