"""What is recorded, removed and told of backlogs, in a file and in memory."""

from __future__ import annotations

import pytest

from cached_session.outbox import (
    Address,
    Claim,
    Mailbox,
    MemoryOutbox,
    Outbox,
    Row,
    SQLiteOutbox,
    Store,
    Summary,
)
from tests.outbox.support import ADDRESS, OFFLINE, OTHER, accept, listed, waiting


async def test_accept(outbox: Outbox) -> None:
    """Items are recorded in the order of acceptance, with its time, each conversation by itself."""
    first = await outbox.transact(accept(b"1", b"2", at=1.5))
    await outbox.transact(accept(b"x", address=OTHER))
    second = await outbox.transact(accept(b"3", at=2.5))
    mailbox = await outbox.transact(lambda store: store.mailbox(ADDRESS))
    seqs = [*first, *second]
    assert seqs == sorted(set(seqs))
    assert mailbox == Mailbox(
        (
            Row(seqs[0], b"1", False, 1.5),
            Row(seqs[1], b"2", False, 1.5),
            Row(seqs[2], b"3", False, 2.5),
        ),
        None,
        None,
    )
    later = await outbox.transact(lambda store: store.mailbox(ADDRESS, after=seqs[1]))
    assert [row.seq for row in later.rows] == [seqs[2]]


async def test_nothing_there(outbox: Outbox) -> None:
    """Asking for a conversation that nothing is recorded of gives nothing, and records nothing."""

    def work(store: Store) -> None:
        assert store.mailbox(ADDRESS) == Mailbox((), None, None)
        assert store.seal(ADDRESS, 9, None) == ()
        assert store.withdraw(ADDRESS) is None
        assert store.drop(ADDRESS, sealed=True) == 0
        assert store.window(ADDRESS) is None
        assert store.known_as(ADDRESS) is None
        assert store.known_as(OFFLINE) is None
        store.landed(ADDRESS, 9)
        store.set_doubt(ADDRESS, None)
        store.resume(ADDRESS)
        store.release(ADDRESS)
        store.replace_window(ADDRESS, None)
        assert store.summaries() == []
        assert store.address(1) is None

    await outbox.transact(work)


@pytest.mark.parametrize(
    "other",
    [
        ADDRESS._replace(base_url="https://other.example/"),
        ADDRESS._replace(organization=""),
        ADDRESS._replace(project="other"),
        ADDRESS._replace(credentials=""),
    ],
)
async def test_accounts(other: Address, outbox: Outbox) -> None:
    """The same conversation id under another account is another backlog."""
    await outbox.transact(accept(b"1"))
    assert (await outbox.transact(lambda store: store.mailbox(other))).rows == ()


async def test_seal_and_land(outbox: Outbox) -> None:
    """A sealed batch stays until it has landed; what was accepted meanwhile stays behind it."""
    a, b, c = await outbox.transact(accept(b"a", b"b", b"c"))
    sealed = await outbox.transact(lambda store: store.seal(ADDRESS, b, b"doubt"))
    assert [(row.seq, row.sealed) for row in sealed] == [(a, True), (b, True)]
    mailbox = await outbox.transact(lambda store: store.mailbox(ADDRESS))
    assert [row.sealed for row in mailbox.rows] == [True, True, False]
    assert mailbox.doubt == b"doubt"

    await outbox.transact(lambda store: store.landed(ADDRESS, a))
    again = await outbox.transact(lambda store: store.seal(ADDRESS, a, None))
    assert [row.seq for row in again] == [b]
    # What was never sealed cannot have landed.
    await outbox.transact(lambda store: store.landed(ADDRESS, c))
    mailbox = await outbox.transact(lambda store: store.mailbox(ADDRESS))
    assert ([row.seq for row in mailbox.rows], mailbox.doubt) == ([c], None)


async def test_doubt(outbox: Outbox) -> None:
    """A doubt is noted and taken back, also of a conversation without items."""
    await outbox.transact(lambda store: store.set_doubt(ADDRESS, b"doubt"))
    assert (await outbox.transact(lambda store: store.mailbox(ADDRESS))).doubt == b"doubt"
    await outbox.transact(lambda store: store.set_doubt(ADDRESS, None))
    assert (await outbox.transact(lambda store: store.mailbox(ADDRESS))).doubt is None
    await outbox.transact(lambda store: store.seal(OTHER, 1, b"other"))
    assert (await outbox.transact(lambda store: store.mailbox(OTHER))).doubt == b"other"


async def test_withdraw(outbox: Outbox) -> None:
    """The newest item is withdrawn unless it is sealed, and its place is not given out again."""
    _, b = await outbox.transact(accept(b"a", b"b"))
    row = await outbox.transact(lambda store: store.withdraw(ADDRESS))
    assert row == Row(b, b"b", False, 1.0)
    (c,) = await outbox.transact(accept(b"c"))
    assert c > b
    await outbox.transact(lambda store: store.seal(ADDRESS, c, None))
    assert await outbox.transact(lambda store: store.withdraw(ADDRESS)) is None
    assert await outbox.transact(waiting) == [b"a", b"c"]


async def test_drop(outbox: Outbox) -> None:
    """Dropping spares what may have been sent, and the doubt, unless told otherwise."""
    a, *_ = await outbox.transact(accept(b"a", b"b", b"c"))
    await outbox.transact(accept(b"x", address=OTHER))
    await outbox.transact(lambda store: store.seal(ADDRESS, a, b"doubt"))
    assert await outbox.transact(lambda store: store.drop(ADDRESS, sealed=False)) == 2
    mailbox = await outbox.transact(lambda store: store.mailbox(ADDRESS))
    assert ([row.seq for row in mailbox.rows], mailbox.doubt) == ([a], b"doubt")
    assert await outbox.transact(lambda store: store.drop(ADDRESS, sealed=True)) == 1
    mailbox = await outbox.transact(lambda store: store.mailbox(ADDRESS))
    assert mailbox == Mailbox((), None, None)
    assert len((await outbox.transact(lambda store: store.mailbox(OTHER))).rows) == 1


async def test_pause(outbox: Outbox) -> None:
    """A backlog is paused with a reason until it is resumed, with or without items."""
    await outbox.transact(lambda store: store.pause(ADDRESS, "refused"))
    assert (await outbox.transact(lambda store: store.mailbox(ADDRESS))).paused == "refused"
    (summary,) = await outbox.transact(lambda store: store.summaries())
    assert (summary.items, summary.paused) == (0, "refused")
    await outbox.transact(lambda store: store.resume(ADDRESS))
    assert (await outbox.transact(lambda store: store.mailbox(ADDRESS))).paused is None
    assert await outbox.transact(lambda store: store.summaries()) == []


async def test_created(outbox: Outbox) -> None:
    """A local name's backlog becomes the conversation's, and the old name still leads there."""
    new = OFFLINE._replace(conversation="conv_9")
    await outbox.transact(accept(b"1", address=OFFLINE))
    assert await outbox.transact(lambda store: store.created(OFFLINE, "conv_9")) == new
    assert await outbox.transact(lambda store: store.known_as(OFFLINE)) == "conv_9"
    await outbox.transact(accept(b"2", address=OFFLINE))
    rows = (await outbox.transact(lambda store: store.mailbox(new))).rows
    assert [row.data for row in rows] == [b"1", b"2"]
    # Whoever comes second hears of the conversation that was made first.
    assert await outbox.transact(lambda store: store.created(OFFLINE, "conv_10")) == new
    # The name stays known after the backlog was sent and let go of.
    await outbox.transact(lambda store: store.drop(new, sealed=True))
    await outbox.transact(lambda store: store.claim(new))
    await outbox.transact(lambda store: store.release(new))
    assert await outbox.transact(lambda store: store.known_as(OFFLINE)) == "conv_9"


async def test_created_and_known(outbox: Outbox) -> None:
    """A conversation that has a record already takes over what waited under the local name."""
    await outbox.transact(accept(b"1", address=OFFLINE))
    await outbox.transact(lambda store: store.pause(OFFLINE, "refused"))
    await outbox.transact(accept(b"2"))
    new = await outbox.transact(lambda store: store.created(OFFLINE, ADDRESS.conversation))
    assert new == ADDRESS
    assert await outbox.transact(waiting) == [b"1", b"2"]
    assert (await outbox.transact(lambda store: store.mailbox(OFFLINE))).paused == "refused"
    assert len(await outbox.transact(lambda store: store.summaries())) == 1


async def test_created_without_a_local_name(outbox: Outbox) -> None:
    """A conversation that the server knows cannot become another one."""
    with pytest.raises(ValueError, match="address"):
        await outbox.transact(lambda store: store.created(ADDRESS, "conv_9"))


async def test_claim(outbox: Outbox) -> None:
    """A backlog is claimed as often as one likes, and a released one without content is gone."""
    assert await outbox.transact(lambda store: store.claim(ADDRESS)) is Claim.KEPT
    assert await outbox.transact(lambda store: store.claim(ADDRESS)) is Claim.KEPT
    assert await outbox.transact(lambda store: store.address(1)) == ADDRESS
    await outbox.transact(lambda store: store.release(ADDRESS))
    assert await outbox.transact(lambda store: store.address(1)) is None
    await outbox.transact(accept(b"1"))
    assert await outbox.transact(lambda store: store.claim(ADDRESS))
    await outbox.transact(lambda store: store.release(ADDRESS))
    assert await outbox.transact(waiting) == [b"1"]


async def test_summaries(outbox: Outbox) -> None:
    """A summary tells of a backlog in short, and its number leads to the address."""
    a, _ = await outbox.transact(accept(b"12", b"345", at=7.0))
    await outbox.transact(accept(b"6", at=8.0))
    await outbox.transact(lambda store: store.seal(ADDRESS, a, None))
    await outbox.transact(accept(b"7", address=OTHER))
    await outbox.transact(lambda store: store.claim(ADDRESS))
    first, second = await outbox.transact(lambda store: store.summaries())
    assert first == Summary(first.number, ADDRESS, 3, 6, 1, 7.0, None, True, 0)
    assert (second.address, second.owned) == (OTHER, False)
    assert await outbox.transact(lambda store: store.address(second.number)) == OTHER


@pytest.mark.parametrize("kind", [SQLiteOutbox, MemoryOutbox])
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_items", 0, ValueError),
        ("max_items", 1.5, TypeError),
        ("max_items", True, TypeError),
        ("max_bytes", 0, ValueError),
        ("max_bytes", None, TypeError),
        ("max_age", 0, ValueError),
        ("max_age", float("nan"), ValueError),
        ("max_age", "1", TypeError),
        ("max_wait", -1, ValueError),
        ("max_wait", float("inf"), ValueError),
        ("max_wait", None, TypeError),
        ("max_window_bytes", -1, ValueError),
        ("max_window_bytes", 1.0, TypeError),
        ("path", "", ValueError),
        ("path", ":memory:", ValueError),
        ("path", "a\0b", ValueError),
        ("path", b"bytes", TypeError),
        ("path", None, TypeError),
    ],
)
def test_arguments(
    kind: type, name: str, value: object, error: type[Exception], path: object
) -> None:
    """An argument that cannot be right is refused by its name, and no file is made."""
    arguments = {"path": path} if kind is SQLiteOutbox else {}
    if kind is MemoryOutbox and name in ("path", "max_window_bytes"):
        error = TypeError
    with pytest.raises(error, match=name):
        kind(**{**arguments, name: value})
    assert not path.exists()


def test_repr(on_disk: SQLiteOutbox) -> None:
    """The text of an outbox shows where it is."""
    assert repr(on_disk) == f"SQLiteOutbox({str(on_disk.path)!r})"
    assert repr(MemoryOutbox()) == "MemoryOutbox()"


async def test_memory_keeps_no_windows() -> None:
    """An outbox in memory takes windows and forgets them, and keeps its items when it is closed."""
    outbox = MemoryOutbox()
    await outbox.transact(lambda store: store.append_window(ADDRESS, listed("a"), 0))
    assert await outbox.transact(lambda store: store.window(ADDRESS)) is None
    await outbox.transact(accept(b"1"))
    await outbox.let_go()
    assert await outbox.transact(waiting) == [b"1"]
