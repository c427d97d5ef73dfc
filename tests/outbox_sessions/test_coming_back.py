"""What is held here, or kept in the file, while other processes went on."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    ConversationCache,
    DeadlineExceeded,
    MemoryOutbox,
    OutboxError,
)
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_create, is_listing
from tests.faults.line import CUT, any_request, error
from tests.outbox_sessions.one_disk import LATE, OneDisk, fails, on_one_disk
from tests.outbox_sessions.support import in_virtual_time, opened, raised, until, words
from tests.session.support import numbered, users
from tests.simulation.outbox_disk import SimOutbox


@pytest.mark.parametrize("closed", [True, False])
@on_one_disk("a")
async def test_an_equal_message_of_another_process(world: OneDisk, closed: bool) -> None:
    """An item that the next session of a process appends is not taken for another process's.

    The local copy outlives the session, and was not brought up to date since.
    """
    cache, process = ConversationCache(), world.process("1")
    one, two = (await world.opened(process, cache=cache))[0], world.process("2")
    await one.add_items(users("b"))
    await one.flush()
    if closed:
        await one.aclose()
    other = world.session(two)
    await other.add_items(users("yes"))
    await other.aclose()
    again = world.session(process, cache=cache)
    world.line.on(is_append, CUT)
    await again.add_items(users("yes"))
    await again.flush()
    assert world.line.texts(world.conversation) == ["a", "b", "yes", "yes"]


@on_one_disk("a")
async def test_a_doubt_that_another_process_has_settled(world: OneDisk) -> None:
    """What was in doubt when a session was closed, and was settled since, is not looked for."""
    cache, process = ConversationCache(), world.process("1")
    (one,) = await world.opened(process, cache=cache)
    world.line.on(is_append, LATE)
    await one.add_items(users("yes"))
    await one.aclose()
    (two,) = await world.opened(world.process("2"))
    await asyncio.sleep(8)  # the late copy comes, and is removed
    assert words(await two.get_items()) == ["a", "yes"]
    await two.add_items(users("ok?", "yes"))
    await two.aclose()
    again = world.session(process, cache=cache)
    assert words(await again.get_items()) == ["a", "yes", "ok?", "yes"]
    # Whichever of the two sends them.
    await again.aclose(timeout=10)
    assert world.line.texts(world.conversation) == ["a", "yes", "ok?", "yes"]


@pytest.mark.parametrize("kind", ["memory", "disk"])
@on_one_disk("a")
async def test_what_a_closed_session_held(world: OneDisk, kind: str) -> None:
    """Where nobody else has had it, the next session goes on with the copy: one request."""
    for start in range(0, 240, 20):
        world.line.append(world.conversation, *map(str, range(start, start + 20)))
    outbox: Any = MemoryOutbox() if kind == "memory" else world.process("1")
    cache = ConversationCache()
    for number in range(3):
        session = world.session(outbox, cache=cache)
        await session.get_items()
        await session.add_items(users(f"more {number}"))
        await session.aclose(timeout=60)
        asked = world.line.asked()
        assert number == 0 or asked == ["list", "append"]


@on_one_disk("a")
async def test_a_pop_beside_a_late_copy(world: OneDisk) -> None:
    """A pop does not take the late copy of an item that another process has left for the item."""
    one, two = await world.opened(world.process("1"), world.process("2"), max_staleness=0)
    world.line.on(is_append, LATE)
    await two.add_items(users("x"))
    await asyncio.sleep(20)
    assert world.line.texts(world.conversation) == ["a", "x", "x"]
    assert words([await one.pop_item()]) == ["x"]
    assert world.line.texts(world.conversation) == ["a"]


@pytest.mark.parametrize("moment", [*range(40), None])
@on_one_disk("a")
async def test_kept_by_one_who_sends_nothing(world: OneDisk, moment: int | None) -> None:
    """A batch whose sender died is not kept in the file by a reader, beside what waits."""
    process = world.process("1", delay=0.1)
    (reader,) = await world.opened(process, max_staleness=0)
    world.had_by_a_dead_process("x", sealed=True)
    world.line.append(world.conversation, "x")  # its request came through
    reading = world.begin(reader.get_items())
    if moment is None:
        assert words(await reading) == ["a", "x"]
    else:
        await asyncio.sleep(0.02 * moment)
        world.ends(process)
        reading.cancel()
    late = world.session(world.process("2"), max_staleness=math.inf)
    assert words(await late.get_items()) == ["a", "x"]


@pytest.mark.parametrize("moment", range(40))
@on_one_disk("a")
async def test_kept_before_it_is_noted_what_has_landed(world: OneDisk, moment: int) -> None:
    """A process that ends between an answer and its note does not leave both in the file."""
    process = world.process("1", delay=0.1)
    (one,) = await world.opened(process, max_staleness=0)
    world.line.on(is_append, Fault(FaultKind.SLOW, delay=0.5))
    await one.add_items(users("x"))
    await until(lambda: world.line.in_flight > 0)
    reading = world.begin(one.get_items())
    await asyncio.sleep(0.5 + 0.02 * moment)
    world.ends(process)
    reading.cancel()
    late = world.session(world.process("2"), max_staleness=math.inf)
    assert words(await late.get_items()) == ["a", "x"]


@on_one_disk("a")
async def test_a_paused_backlog_that_is_read_in_turn(world: OneDisk) -> None:
    """What is noted of a batch does not grow with the processes that look at it."""
    one, two = await world.opened(world.process("1"), world.process("2"), max_staleness=0)
    world.line.always(is_append, error(400, "no"))
    await one.add_items(users("x" * 1000))
    await asyncio.sleep(1)
    sizes = []
    for _ in range(10):
        await two.get_items()
        await one.get_items()
        sizes.append(world.noted())
    assert sizes[-1] == sizes[0] < 500


@pytest.mark.parametrize("waiting", [True, False])
@on_one_disk()
async def test_a_local_name_that_another_process_sends(world: OneDisk, waiting: bool) -> None:
    """Under a name of which another process made a conversation, everything goes to that one."""
    world.line.always(is_create, CUT)
    two = world.session(world.process("2"), None)
    await two.add_items(users("w"))
    await two.pop_item()
    await asyncio.sleep(20)
    name = repr(two).removeprefix("CachedSession(").partition(",")[0]
    one = world.session(world.process("1"), name)
    assert await one.get_items() == []
    if waiting:
        await two.add_items(users("x"))
        await asyncio.sleep(1)
        # Which waits for the server, and keeps this one from making the conversation.
        assert isinstance(await raised(one.flush(3.0)), DeadlineExceeded)
    world.line.heal()
    if not waiting:
        await two.add_items(users("x"))
    await two.flush()
    world.line.asked()
    await one.add_items(users("y"))
    await one.flush()
    assert "create" not in world.line.asked()
    assert one.session_id == two.session_id
    assert world.line.texts(one.session_id) == ["x", "y"]


@in_virtual_time
async def test_offline_behind_one_item() -> None:
    """The one item that was held before an append which cannot be sent is held after it."""
    line, session, conversation = await opened(*map(str, range(20)))
    await session.refresh()
    assert words(await session.get_items(1)) == ["19"]
    line.always(any_request, CUT)
    await session.add_items(users("x"))
    await asyncio.sleep(1)
    assert words(await session.get_items(2)) == ["19", "x"]
    assert words([await session.pop_item()]) == ["x"]
    assert words(await session.get_items(1)) == ["19"]
    line.heal()
    await session.aclose()
    assert line.texts(conversation)[-1] == "19"


@on_one_disk("a")
async def test_what_could_not_be_read_at_once(world: OneDisk) -> None:
    """An append that cannot read what another process has recorded records nothing itself."""
    process, other = world.process("1"), world.process("2")
    one, two = await world.opened(process, other)
    world.line.always(any_request, CUT)
    await two.add_items(numbered(0, 15))
    world.ends(other)
    failed = fails(process, "mailbox")
    with pytest.raises(OutboxError, match="the disk is full"):
        await one.add_items(numbered(15, 30))
    assert failed()
    await one.add_items(numbered(15, 30))
    world.line.heal()
    world.line.on(is_append, FaultKind.HANG)
    await asyncio.sleep(10)
    assert world.sealed() == 20
    await one.flush(500)
    assert world.line.texts(world.conversation) == ["a", *map(str, range(30))]


CALLS: dict[str, Any] = {
    "read": CachedSession.get_items,
    "flush": CachedSession.flush,
    "pop": CachedSession.pop_item,
}


async def _noted_by_a_dead_process(world: OneDisk, *processes: SimOutbox) -> list[CachedSession]:
    """Sessions of which the first has had the conversation, and a dead process after it."""
    sessions = await world.opened(*processes)
    await world.left_in_doubt(sessions[0])
    await asyncio.sleep(8)
    world.had_by_a_dead_process("d", sealed=True)
    world.line.append(world.conversation, "d")  # its request came through
    return sessions


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("step", range(1, 13))
@pytest.mark.parametrize("other", [True, False])
@on_one_disk("a")
async def test_cancelled_before_it_was_read(
    world: OneDisk, call: str, step: int, other: bool
) -> None:
    """What another process has noted outlives a call that takes it over and is cancelled then."""
    processes = world.process("1", delay=0.1), world.process("2")
    one, two = await _noted_by_a_dead_process(world, *processes)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.04 * step):
            await CALLS[call](one)
    await asyncio.sleep(5)
    await world.goes_on(two if other else one)
    await one.flush()
    stored = world.line.texts(world.conversation)
    assert stored.count("d") <= 1
    await one.refresh()
    assert words(await one.get_items()) == stored


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("number", [1, 2])
@on_one_disk("a")
async def test_what_could_not_be_read(world: OneDisk, call: str, number: int) -> None:
    """It outlives a call that takes it over and cannot read it, too."""
    process = world.process("1", delay=0.1)
    one, two = await _noted_by_a_dead_process(world, process, world.process("2"))
    fails(process, "window", number)
    with contextlib.suppress(OutboxError):
        await CALLS[call](one)
    await asyncio.sleep(5)
    await world.goes_on(two)
    assert world.line.texts(world.conversation).count("d") <= 1


@on_one_disk("a")
async def test_a_removal_that_ends_with_its_process(world: OneDisk) -> None:
    """What was removed of a late copy is not shown by who reads what is kept in the file."""
    process = world.process("1")
    (one,) = await world.opened(process)
    await world.ends_amid_a_removal(process, one)
    # The first one looks after the rest of it; the other one only reads.
    world.line.on(is_listing, Fault(FaultKind.SLOW, delay=5.0))
    two = world.begin(world.opened(world.process("2")))
    await asyncio.sleep(1)
    late = world.session(world.process("3"), max_staleness=math.inf)
    # With or without what is left of the copy.
    assert words(await late.get_items()) in (["a", "x", "y"], ["a", "x", "y", "y"])
    two.cancel()


@on_one_disk("a")
async def test_a_pop_beside_a_process_that_accepts(world: OneDisk) -> None:
    """What another process has accepted since is popped first, also where it looks after all."""
    other, third = world.process("2"), world.process("3")
    (two,) = await world.opened(other, max_staleness=math.inf)
    await two.add_items(users("b"))
    await two.flush()
    await two.refresh()
    world.line.always(is_listing, CUT)
    await two.add_items(users("x"))
    await asyncio.sleep(1)
    three = world.session(third, max_staleness=math.inf)
    assert words([await three.pop_item()]) == ["x"]
    await two.add_items(users("y"))
    assert words([await three.pop_item()]) == ["y"]
    assert world.line.texts(world.conversation) == ["a", "b"]
    world.line.heal()
