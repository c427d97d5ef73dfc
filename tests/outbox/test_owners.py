"""Owners that live and die, and processes that share a file."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.errors import OutboxError
from cached_session.outbox import Claim, SQLiteOutbox
from tests.outbox.support import ADDRESS, accept, line, process, waiting

HOLD = """
outbox = SQLiteOutbox(path)
asyncio.run(outbox.transact(lambda log: log.store.accept(address, [b"1"], 1.0)))
asyncio.run(outbox.transact(lambda log: log.store.claim(address)))
print("claimed", flush=True)
sys.stdin.read()
"""


def _owners(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}-owner-*"))


async def test_two_outboxes_of_one_process(path: Path) -> None:
    """Of two outboxes one owns a backlog until it releases it or is closed."""
    first, second = SQLiteOutbox(path), SQLiteOutbox(path)
    await first.transact(accept(b"1"))
    assert await first.transact(lambda log: log.store.claim(ADDRESS)) is Claim.KEPT
    for _ in range(2):
        # Having looked once does not break the other one's lock.
        assert await second.transact(lambda log: log.store.claim(ADDRESS)) is None
    (summary,) = await second.transact(lambda log: log.store.summaries())
    assert summary.owned
    # What is another's cannot be released.
    await second.transact(lambda log: log.store.release(ADDRESS))
    assert await second.transact(lambda log: log.store.claim(ADDRESS)) is None
    await first.transact(lambda log: log.store.release(ADDRESS))
    assert await first.transact(lambda log: log.store.claim(ADDRESS)) is Claim.KEPT
    await first.transact(lambda log: log.store.release(ADDRESS))
    (summary,) = await second.transact(lambda log: log.store.summaries())
    assert not summary.owned
    # It learns that somebody else has worked on it.
    assert await second.transact(lambda log: log.store.claim(ADDRESS)) is Claim.TAKEN
    await second.let_go()
    (summary,) = await first.transact(lambda log: log.store.summaries())
    assert not summary.owned
    assert await first.transact(lambda log: log.store.claim(ADDRESS)) is Claim.TAKEN
    await first.let_go()
    assert _owners(path) == []


@pytest.mark.processes
async def test_killed(path: Path) -> None:
    """A process owns its backlog as long as it lives, and not a moment longer."""
    outbox = SQLiteOutbox(path)
    with process(HOLD, path) as other:
        assert line(other) == "claimed"
        assert await outbox.transact(lambda log: log.store.claim(ADDRESS)) is None
        assert len(_owners(path)) == 2
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert await outbox.transact(lambda log: log.store.claim(ADDRESS)) is Claim.TAKEN
    assert len(_owners(path)) == 1
    assert await outbox.transact(waiting) == [b"1"]
    await outbox.let_go()


@pytest.mark.processes
async def test_opening_removes_what_the_dead_left(path: Path) -> None:
    """The file of an owner that died is removed by whoever opens the outbox next."""
    with process(HOLD, path) as other:
        assert line(other) == "claimed"
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert len(_owners(path)) == 1
    outbox = SQLiteOutbox(path)
    await outbox.let_go()
    assert _owners(path) == []


async def test_a_token_that_is_none(path: Path) -> None:
    """An owner that no outbox can have made is dead, and leads to no file."""
    outbox = SQLiteOutbox(path)
    bystander = path.parent / f"{path.name}-owner-mine"
    bystander.touch()
    await outbox.transact(accept(b"1"))
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE conversations SET owner = 'mine'")
    assert await outbox.transact(lambda log: log.store.claim(ADDRESS)) is Claim.TAKEN
    assert bystander.exists()
    await outbox.let_go()


async def test_own_file_removed(path: Path) -> None:
    """An owner whom nobody can see any more records nothing: others take it for dead."""
    outbox = SQLiteOutbox(path)
    (mine,) = _owners(path)
    mine.unlink()
    with pytest.raises(OutboxError, match="removed or replaced"):
        await outbox.transact(lambda log: log.store.claim(ADDRESS))
    await outbox.let_go()
    # With the next use it is another owner, whom they see.
    assert await outbox.transact(lambda log: log.store.claim(ADDRESS)) is Claim.KEPT
    await outbox.let_go()


@pytest.mark.processes
def test_two_processes_write(path: Path) -> None:
    """Processes that write at once, into a file that is new, lose nothing and share no place."""
    script = """
import json
sys.stdin.readline()
outbox = SQLiteOutbox(path)
async def accept():
    return await outbox.transact(lambda log: log.store.accept(address, [b"1"], 1.0))
async def main():
    found = await asyncio.gather(*(accept() for _ in range(50)))
    found += [await accept() for _ in range(50)]
    print(json.dumps([seq for seqs in found for seq in seqs]))
asyncio.run(main())
"""
    with process(script, path) as first, process(script, path) as second:
        for child in (first, second):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        seqs = [json.loads(line(child)) for child in (first, second)]
        assert [child.wait() for child in (first, second)] == [0, 0]
    for mine in seqs:
        assert mine == sorted(mine)
    both = [*seqs[0], *seqs[1]]
    assert len(set(both)) == 200
    with closing(sqlite3.connect(path)) as reader:
        assert [seq for (seq,) in reader.execute("SELECT seq FROM items ORDER BY seq")] == sorted(
            both
        )
