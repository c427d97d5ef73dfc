"""The verbs of a log, in a file and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cached_session import PostgresOutbox
from cached_session.core.items import hold
from cached_session.errors import Reopened
from cached_session.outbox import (
    Address,
    BacklogSummary,
    Claim,
    Log,
    Mailbox,
    MemoryOutbox,
    Outbox,
    Row,
    SQLiteOutbox,
)
from cached_session.outbox.log import Kept, Look, Noted, Sealed, Withdrawn
from tests.outbox.support import ADDRESS, OFFLINE, OTHER, accept, opened, waiting


async def test_accept(outbox: Outbox) -> None:
    """Items are recorded in the order of acceptance, with its time, each conversation by itself."""
    first = await outbox.transact(accept(b"1", b"2", at=1.5))
    await outbox.transact(accept(b"x", address=OTHER))
    second = await outbox.transact(accept(b"3", at=2.5))
    seqs = [*first, *second]
    assert seqs == sorted(set(seqs))
    rows = (
        Row(seqs[0], b"1", False, 1.5),
        Row(seqs[1], b"2", False, 1.5),
        Row(seqs[2], b"3", False, 2.5),
    )

    def work(log: Log) -> None:
        assert log.mailbox(ADDRESS) == Mailbox(rows, None, None)
        assert log.catch_up(ADDRESS, opened(log), seqs[0]) == rows[1:]
        # Whoever appends hears of what it has not seen, and that stands before its own.
        accepted = log.accept(ADDRESS, opened(log), seqs[1], [b"4"], 3.5)
        assert (accepted.others, [row.data for row in accepted.rows]) == (rows[2:], [b"4"])

    await outbox.transact(work)


async def test_opening_a_conversation(outbox: Outbox) -> None:
    """All of it is read first; from then on what has come since, as long as nobody else had it."""
    (place,) = await outbox.transact(accept(b"1"))

    def work(log: Log) -> None:
        found = log.open(ADDRESS, None, 0, claim=True, first=True)
        assert (found.anew, found.mine, found.exists) == (True, True, True)
        assert [row.seq for row in found.rows] == [place]
        log.accept(ADDRESS, found.epoch, place, [b"2"], 1.0)
        again = log.open(
            ADDRESS,
            log.open(ADDRESS, None, 0, claim=True, first=False).epoch,
            place,
            claim=True,
            first=False,
        )
        assert (again.anew, [row.data for row in again.rows]) == (False, [b"2"])

    await outbox.transact(work)


async def test_nothing_there(outbox: Outbox) -> None:
    """Asking for a conversation that nothing is recorded of gives nothing, and records nothing."""

    def work(log: Log) -> None:
        found = log.open(ADDRESS, None, 0, claim=False, first=True)
        assert (found.rows, found.doubt, found.paused, found.exists) == ((), None, None, False)
        assert (found.window, found.namesakes) == (None, ())
        assert log.mailbox(ADDRESS) == Mailbox((), None, None)
        assert log.catch_up(ADDRESS, found.epoch, 0) == ()
        assert log.withdraw(ADDRESS, found.epoch, 0) == Withdrawn(None, None)
        assert log.drop(ADDRESS, found.epoch, sealed=True, landed=9) == ()
        assert log.look(ADDRESS, found.epoch) == Look(False, False, None, False)
        log.forget(ADDRESS, found.epoch)
        note(log, landed=9, release=True)
        log.resume(ADDRESS)
        log.release(ADDRESS)
        assert log.summaries() == []
        assert not log.open(ADDRESS, None, 0, claim=False, first=True).exists

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
    """The same conversation id under another account is another backlog, of which one is told."""
    await outbox.transact(accept(b"1"))

    def work(log: Log) -> None:
        assert log.mailbox(other).rows == ()
        same_place = other[:3] == ADDRESS[:3]
        told = log.open(other, None, 0, claim=False, first=True).namesakes
        assert [(one.address, one.items) for one in told] == [(ADDRESS, 1)] * same_place
        assert log.open(other, None, 0, claim=False, first=False).namesakes == ()

    await outbox.transact(work)


async def test_seal_and_land(outbox: Outbox) -> None:
    """A sealed batch stays until it has landed; what was accepted meanwhile stays behind it."""
    a, b, c = await outbox.transact(accept(b"a", b"b", b"c"))

    def work(log: Log) -> None:
        sealed = seal(log, b, b"doubt")
        assert [(row.seq, row.sealed) for row in sealed.rows] == [(a, True), (b, True)]
        mailbox = log.mailbox(ADDRESS)
        assert [row.sealed for row in mailbox.rows] == [True, True, False]
        assert mailbox.doubt == b"doubt"
        # What has landed goes with the next seal, or with a note.
        again = seal(log, b, b"again", landed=a)
        assert [row.seq for row in again.rows] == [b]
        # What was never sealed cannot have landed.
        assert note(log, landed=c, undoubted=True).newer == log.mailbox(ADDRESS).rows
        mailbox = log.mailbox(ADDRESS)
        assert ([row.seq for row in mailbox.rows], mailbox.doubt) == ([c], None)

    await outbox.transact(work)


async def test_doubt(outbox: Outbox) -> None:
    """A doubt is noted and taken back, also of a conversation without items; or it stays."""

    def work(log: Log) -> None:
        log.open(ADDRESS, None, 0, claim=True, first=True)
        assert note(log, doubt=b"doubt").doubt
        assert log.mailbox(ADDRESS).doubt == b"doubt"
        assert log.look(ADDRESS, opened(log)).doubted
        assert not note(log).doubt
        assert log.mailbox(ADDRESS).doubt == b"doubt"
        note(log, undoubted=True)
        assert log.mailbox(ADDRESS).doubt is None

    await outbox.transact(work)


async def test_withdraw(outbox: Outbox) -> None:
    """The newest item is withdrawn unless it is sealed, and its place is not given out again."""
    _, b = await outbox.transact(accept(b"a", b"b"))
    taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), b))
    assert taken == Withdrawn(Row(b, b"b", False, 1.0), None)
    (c,) = await outbox.transact(accept(b"c"))
    assert c > b
    await outbox.transact(lambda log: seal(log, c, b"doubt"))
    taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), c))
    assert taken == Withdrawn(None, None)
    assert await outbox.transact(waiting) == [b"a", b"c"]


@pytest.mark.parametrize("sealed", [False, True])
async def test_withdraw_of_what_was_not_seen(sealed: bool, outbox: Outbox) -> None:
    """Nothing is withdrawn by who has not seen all that waits: the rest comes with the answer."""
    a, b, c = await outbox.transact(accept(b"a", b"b", b"c"))
    if sealed:
        await outbox.transact(lambda log: seal(log, c, b"doubt"))
    newer = (Row(b, b"b", sealed, 1.0), Row(c, b"c", sealed, 1.0))
    taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), a))
    assert taken == Withdrawn(None, newer)
    assert await outbox.transact(waiting) == [b"a", b"b", b"c"]
    # Whoever has taken it in asks again.
    taken = await outbox.transact(lambda log: log.withdraw(ADDRESS, opened(log), c))
    assert taken == Withdrawn(None if sealed else newer[-1], None)


async def test_drop(outbox: Outbox) -> None:
    """Dropping spares what may have been sent, and the doubt, unless told otherwise."""
    a, b, c = await outbox.transact(accept(b"a", b"b", b"c"))
    await outbox.transact(accept(b"x", address=OTHER))

    def work(log: Log) -> None:
        seal(log, a, b"doubt")
        epoch = log.open(ADDRESS, None, 0, claim=True, first=False).epoch
        assert log.drop(ADDRESS, epoch, sealed=False, landed=0) == (b, c)
        mailbox = log.mailbox(ADDRESS)
        assert ([row.seq for row in mailbox.rows], mailbox.doubt) == ([a], b"doubt")
        log.pause(ADDRESS, epoch, "refused")
        assert log.drop(ADDRESS, epoch, sealed=True, landed=0) == (a,)
        assert log.mailbox(ADDRESS) == Mailbox((), None, None)
        assert len(log.mailbox(OTHER).rows) == 1

    await outbox.transact(work)


async def test_pause(outbox: Outbox) -> None:
    """A backlog is paused with a reason until it is resumed, with or without items."""

    def work(log: Log) -> None:
        log.pause(ADDRESS, opened(log), "refused")
        assert log.mailbox(ADDRESS).paused == "refused"
        assert log.look(ADDRESS, opened(log)).paused == "refused"
        (summary,) = log.summaries()
        assert (summary.items, summary.paused) == (0, "refused")
        log.resume(ADDRESS)
        assert log.mailbox(ADDRESS).paused is None
        assert log.summaries() == []

    await outbox.transact(work)


async def test_a_name(outbox: Outbox) -> None:
    """A local name's backlog becomes the conversation's, and the old name still leads there."""
    new = OFFLINE._replace(conversation="conv_9")
    await outbox.transact(accept(b"1", address=OFFLINE))
    assert await outbox.transact(lambda log: log.name(OFFLINE, opened(log), "conv_9")) == new
    await outbox.transact(accept(b"2", address=OFFLINE))

    def work(log: Log) -> None:
        assert [row.data for row in log.mailbox(new).rows] == [b"1", b"2"]
        # Whoever comes second hears of the conversation that was made first.
        assert log.name(OFFLINE, opened(log), "conv_10") == new
        # The name stays known after the backlog was sent and let go of.
        log.drop(new, opened(log), sealed=True, landed=0)
        log.release(new)
        assert log.open(OFFLINE, None, 0, claim=False, first=True).address == new

    await outbox.transact(work)


async def test_a_name_of_a_conversation_that_is_known(outbox: Outbox) -> None:
    """A conversation that has a record already takes over what waited under the local name.

    Behind what waits there: whoever has read that hears of what comes behind it, and of no more.
    """
    await outbox.transact(accept(b"1", address=OFFLINE))
    (seen,) = await outbox.transact(accept(b"2"))

    def work(log: Log) -> None:
        log.pause(OFFLINE, opened(log), "refused")
        assert log.name(OFFLINE, opened(log), ADDRESS.conversation) == ADDRESS
        assert waiting(log) == [b"2", b"1"]
        assert [row.data for row in log.catch_up(ADDRESS, opened(log), seen)] == [b"1"]
        assert log.mailbox(OFFLINE).paused == "refused"
        assert len(log.summaries()) == 1

    await outbox.transact(work)


async def test_a_name_for_what_has_one(outbox: Outbox) -> None:
    """A conversation that the server knows cannot become another one."""
    with pytest.raises(ValueError, match="address"):
        await outbox.transact(lambda log: log.name(ADDRESS, opened(log), "conv_9"))


async def test_summaries(outbox: Outbox) -> None:
    """A summary tells of a backlog in short, in the order in which they were made."""
    a, _ = await outbox.transact(accept(b"12", b"345", at=7.0))
    await outbox.transact(accept(b"6", at=8.0))
    await outbox.transact(accept(b"7", address=OTHER))
    await outbox.transact(lambda log: seal(log, a, b"doubt"))
    first, second = await outbox.transact(lambda log: log.summaries())
    assert first == BacklogSummary(first.number, ADDRESS, 3, 6, 1, 7.0, None, True, 0)
    assert (second.number > first.number, second.address, second.items) == (True, OTHER, 1)


async def test_a_log_that_was_opened_anew(on_disk: SQLiteOutbox) -> None:
    """What was read before a file was closed counts no more: places may be other items' now."""
    epoch = await on_disk.transact(opened)
    await on_disk.let_go()
    for verb in (
        lambda log: log.catch_up(ADDRESS, epoch, 0),
        lambda log: log.accept(ADDRESS, epoch, 0, [b"1"], 1.0),
        lambda log: log.withdraw(ADDRESS, epoch, 0),
        lambda log: log.drop(ADDRESS, epoch, sealed=True, landed=0),
        lambda log: log.forget(ADDRESS, epoch),
        lambda log: log.pause(ADDRESS, epoch, "reason"),
        lambda log: log.name(OFFLINE, epoch, "conv_9"),
        lambda log: log.look(ADDRESS, epoch),
    ):
        with pytest.raises(Reopened):
            await on_disk.transact(verb)
    assert await on_disk.transact(lambda log: log.summaries()) == []


async def test_claim(on_disk: SQLiteOutbox) -> None:
    """A backlog is claimed as often as one likes, and a released one without content is gone."""
    assert await on_disk.transact(lambda log: log.store.claim(ADDRESS)) is Claim.KEPT
    assert await on_disk.transact(lambda log: log.store.claim(ADDRESS)) is Claim.KEPT
    assert (await on_disk.transact(lambda log: log.store.mark(ADDRESS))).number == 1
    await on_disk.transact(lambda log: log.release(ADDRESS))
    assert (await on_disk.transact(lambda log: log.store.mark(ADDRESS))).number == 0
    await on_disk.transact(accept(b"1"))
    assert await on_disk.transact(lambda log: log.store.claim(ADDRESS))
    await on_disk.transact(lambda log: log.release(ADDRESS))
    assert await on_disk.transact(waiting) == [b"1"]


def seal(log: Log, through: int, doubt: bytes, *, landed: int = 0) -> Sealed:
    """Seals a batch as the one who had the conversation last."""
    epoch = log.open(ADDRESS, None, 0, claim=True, first=False).epoch
    sealed = log.seal(ADDRESS, epoch, 0, through=through, landed=landed, doubt=doubt, kept=None)
    assert isinstance(sealed, Sealed)
    return sealed


def note(log: Log, **facts: Any) -> Noted:
    """Notes some facts as the one who had the conversation last."""
    epoch = log.open(ADDRESS, None, 0, claim=False, first=False).epoch
    said = {"landed": 0, "doubt": None, "undoubted": False, "kept": None, "release": False}
    return log.note(ADDRESS, epoch, 0, **{**said, **facts})


@pytest.mark.parametrize("kind", ["file", pytest.param("postgres", marks=pytest.mark.processes)])
async def test_note_of_one_who_has_lost_it(
    kind: str, path: Path, request: pytest.FixtureRequest
) -> None:
    """Who notes what has landed when another owner has the conversation changes nothing of it.

    That one goes by what was in doubt about its rows. With the doubt and without the rows it would
    take what has landed for copies that came late, and delete it.
    """
    if kind == "file":
        first, second = SQLiteOutbox(path), SQLiteOutbox(path)
    else:
        address = request.getfixturevalue("postgres").with_tables()
        first, second = PostgresOutbox(address), PostgresOutbox(address)
    (place,) = await first.transact(accept(b"1"))
    sealed = await first.transact(lambda log: seal(log, place, b"doubt"))
    # As where its lease has ended, or its event loop stands still.
    await first.transact(lambda log: log.release(ADDRESS))
    await second.transact(lambda log: log.open(ADDRESS, None, 0, claim=True, first=False))
    noted = await first.transact(
        lambda log: log.note(
            ADDRESS,
            sealed.epoch,
            place,
            landed=place,
            doubt=None,
            undoubted=True,
            kept=None,
            release=True,
        )
    )
    assert noted.epoch is None
    # Nor does it pause what that one may have sent, or drop what that one may be sending.
    for verb in (
        lambda log: log.pause(ADDRESS, sealed.epoch, "refused"),
        lambda log: log.drop(ADDRESS, sealed.epoch, sealed=True, landed=place),
    ):
        with pytest.raises(Reopened):
            await first.transact(verb)
    mailbox = await second.transact(lambda log: log.mailbox(ADDRESS))
    assert ([row.data for row in mailbox.rows], mailbox.doubt) == ([b"1"], b"doubt")
    assert mailbox.paused is None
    for outbox in (first, second):
        await outbox.let_go()


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
        pytest.param("max_wait", 10**400, ValueError, id="too large"),
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


async def test_memory_keeps_its_items() -> None:
    """An outbox in memory keeps its items when it is let go of."""
    outbox = MemoryOutbox()
    await outbox.transact(accept(b"1"))
    await outbox.let_go()
    assert await outbox.transact(waiting) == [b"1"]


@pytest.mark.parametrize("kind", ["file", pytest.param("postgres", marks=pytest.mark.processes)])
async def test_a_window_that_somebody_else_has_kept_since(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """What is new does not go behind another one's window: all that was listed takes its place."""
    on_file, in_postgres = "on_disk", "in_postgres"
    outbox: Outbox = request.getfixturevalue(on_file if kind == "file" else in_postgres)
    held = [hold({"id": name, "type": "message", "role": "user"}) for name in "abc"]

    def work(log: Log) -> list[str]:
        log.open(ADDRESS, None, 0, claim=True, first=True)
        whole = Kept(held[:2], complete=True, stored=outbox.contents.stored)
        assert note(log, kept=whole).written is not None
        # As one writes who had kept another window before, and has listed just now.
        newest, stored = (10**6, "z"), outbox.contents.stored
        more = Kept(held, complete=True, new=2, newest=newest, listed=True, stored=stored)
        assert note(log, kept=more).written is not None
        window = log.open(ADDRESS, None, 0, claim=False, first=False).window
        assert window is not None
        return [item.id for item in window.items]

    assert await outbox.transact(work) == ["a", "b", "c"]
