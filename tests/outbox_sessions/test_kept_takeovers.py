"""What seeds of the simulation have shown once, as scripts: several processes on one file.

See `tests/faults/test_kept_seeds.py`. A process here ends as one that is killed does.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import pytest
from openai import APIConnectionError

from cached_session import CachedSession, ConversationCache, OutboxPaused
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_item_delete, is_listing
from tests.faults.line import CUT, Do, any_request, error, is_conversation_delete
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import raised, words
from tests.session.support import user, users
from tests.simulation.outbox_disk import SimOutbox


async def _sent_and_ended(world: OneDisk, process: SimOutbox, session: CachedSession) -> None:
    """A process sends an item, which the server takes, and ends before it hears so."""
    world.line.heal()
    world.line.on(is_append, Fault(FaultKind.SLOW, delay=1000.0))
    await session.add_items(users("d"))
    await asyncio.sleep(1)
    assert world.line.texts(world.conversation)[-1] == "d"
    world.ends(process)


@on_one_disk("a")
async def test_a_late_copy_of_what_a_dead_process_had_sent(world: OneDisk) -> None:
    """Who takes over removes a late copy of what the process before it had found and noted.

    A process sent an item again after a lost answer, noted that it had landed, and ended. The first
    request came through then, and the next process kept both (seen where the campaigns that end
    processes have it switched off).
    """
    process = world.process("1")
    (one,) = await world.opened(process)
    await world.left_in_doubt(one)
    world.ends(process)
    await asyncio.sleep(8)
    assert world.line.texts(world.conversation) == ["a", "x", "x"]
    (two,) = await world.opened(world.process("2"))
    assert words(await two.get_items()) == ["a", "x"] == world.line.texts(world.conversation)


@on_one_disk("a")
async def test_half_of_a_late_copy(world: OneDisk) -> None:
    """Who takes over from a process that ended amid the removal of a late copy removes the rest.

    By what was left of the copy the next process could not tell it from another writer's item: the
    removal has to be noted before it begins (the campaign that kills processes amid removals).
    """
    process = world.process("1")
    (one,) = await world.opened(process)
    await world.ends_amid_a_removal(process, one)
    (two,) = await world.opened(world.process("2"))
    assert words(await two.get_items()) == ["a", "x", "y"]
    assert world.line.texts(world.conversation) == ["a", "x", "y"]


@on_one_disk("a")
async def test_a_late_copy_in_the_way(world: OneDisk) -> None:
    """A batch under ids of its own is sent, though a late copy of it could not be removed before.

    Its first request came late, after the batch was refused, and the one that removes it failed.
    When somebody had decided that it goes on, the server refused it as being there already, and a
    listing showed a late copy only: the sender tried without end (the ledger's campaign, seed
    91000003270).
    """
    (one,) = await world.opened(world.process("1"), max_staleness=0)
    world.line.on(is_append, CUT, error(400, "invalid_value"))
    await one.add_items([{**user("x"), "id": "msg_1"}])
    assert isinstance(await raised(one.flush()), OutboxPaused)
    world.line.service.handle(next(filter(is_append, world.line.requests)))
    world.line.always(is_item_delete, CUT)
    assert isinstance(await raised(one.get_items()), APIConnectionError)
    world.line.heal()
    assert world.line.texts(world.conversation) == ["a", "x"]
    world.pause(None)
    await one.flush(500)
    assert world.line.texts(world.conversation) == ["a", "x"] == words(await one.get_items())


@on_one_disk("a")
async def test_a_flush_that_takes_over(world: OneDisk) -> None:
    """A flush that takes over a batch whose answer is missing finds out what became of it.

    Another process had sent a batch that landed, and ended before it heard so. The flush took it
    over and listed, for a doubt of its own, and that listing decided about the batch unnoticed: it
    was sent once more (the outbox's first campaigns).
    """
    process = world.process("2")
    one, two = await world.opened(world.process("1"), process)
    await world.left_in_doubt(one)
    await _sent_and_ended(world, process, two)
    await one.flush()
    await one.flush()
    assert world.line.texts(world.conversation) == ["a", "x", "d"]
    assert words(await one.get_items()) == ["a", "x", "d"]


@pytest.mark.parametrize("moment", range(30))
@on_one_disk("a")
async def test_a_session_that_comes_while_the_last_one_leaves(world: OneDisk, moment: int) -> None:
    """What a session appends that came while the last one was being closed is recorded.

    The last session was closed, and while it was recorded that nothing is held another one came.
    The conversation was parted from the outbox all the same: what the new session appended went
    around it (simulation, seed 31586).
    """
    process, cache = world.process("1", delay=0.1), ConversationCache()
    await world.kept_open(process)
    (first,) = await world.opened(process, cache=cache)
    await first.add_items(users("b"))
    await first.flush()
    closing = world.begin(first.aclose())
    await asyncio.sleep(0.02 * moment)
    second = world.session(process, cache=cache)
    await second.add_items(users("c"))
    await closing
    assert words(await second.get_items()) == [*"abc"]
    await second.flush()
    world.line.always(any_request, CUT)
    assert await raised(second.add_items(users("d"))) is None
    assert words(await second.get_items()) == [*"abcd"]
    world.line.heal()
    await second.flush(500)
    assert world.line.texts(world.conversation) == [*"abcd"]


@pytest.mark.parametrize("call", ["get_items", "flush", "pop_item"])
@pytest.mark.parametrize("step", range(1, 12))
@on_one_disk("a")
async def test_a_takeover_that_is_cancelled(world: OneDisk, call: str, step: int) -> None:
    """What a dead process had sent is found out after a call that took over and was cancelled.

    A call claimed the backlog that a dead process had left, and was cancelled before it had read
    what was noted there. The next call took the backlog for its own, sent the batch again, or
    showed what was not there (simulation, seeds 70765, 13002650).
    """
    process = world.process("2")
    one, two = await world.opened(world.process("1", delay=0.1), process)
    await world.left_in_doubt(one)
    await asyncio.sleep(8)  # its late copy comes, and is removed
    await _sent_and_ended(world, process, two)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.04 * step):
            await getattr(one, call)()
    await asyncio.sleep(5)
    await world.goes_on(one)
    stored, before = world.line.texts(world.conversation), ["a", "x"]
    assert stored in ([*before, "d", "after"], [*before, *["d"][call == "pop_item" :], "after"])
    assert words(await one.get_items()) == stored


@pytest.mark.parametrize("moment", range(0, 40, 2))
@on_one_disk("a")
async def test_a_reader_that_ends(world: OneDisk, moment: int) -> None:
    """What a reader leaves in the file is not shown beside a dead process's batch it has listed.

    A reader listed the conversation, kept that in the file, and ended, before it was noted that a
    dead process's batch had landed: the next one showed both (a review; mended with what
    the simulation's seeds 19000104 and 19000721 had shown).
    """
    process, reader = world.process("2"), world.process("1", delay=0.1)
    one, two = await world.opened(reader, process, max_staleness=0)
    await _sent_and_ended(world, process, two)
    reading = world.begin(one.get_items())
    await asyncio.sleep(0.02 * moment)
    world.ends(reader)
    reading.cancel()
    late = world.session(world.process("3"), max_staleness=math.inf)
    assert words(await late.get_items()) == ["a", "d"]


@on_one_disk("a", "b")
async def test_a_pop_by_a_process_that_ends(world: OneDisk) -> None:
    """An item that a process removed before it ended is not shown by the next one.

    What was kept in the file held it, and no check looks so far back (the campaign that kills).
    """
    process = world.process("1")
    (one,) = await world.opened(process)
    await one.add_items(users("c"))
    await one.flush()
    assert words([await one.pop_item()]) == ["c"]
    assert words([await one.pop_item()]) == ["b"]
    world.ends(process)
    late = world.session(world.process("2"), max_staleness=math.inf)
    assert words(await late.get_items()) == ["a"] == world.line.texts(world.conversation)


@pytest.mark.parametrize("step", range(8))
@on_one_disk("a")
async def test_a_read_behind_a_cancelled_pop(world: OneDisk, step: int) -> None:
    """A read comes after a pop that was cancelled: what it shows of an item is how it stays.

    A pop was cancelled while the file was at it. The read behind it was answered before that was
    done, with the item that was gone a moment later (the outbox's first campaigns).
    """
    (one,) = await world.opened(world.process("1", delay=0.1))
    world.line.always(any_request, CUT)
    await one.add_items(users("x"))
    await asyncio.sleep(5)  # it is on its way, for all that is known
    await one.add_items(users("y"))
    popping = world.begin(one.pop_item())
    await asyncio.sleep(0.02 * step)
    popping.cancel()
    await asyncio.wait({popping})
    shown = words(await one.get_items())
    assert words(await one.get_items()) == shown
    world.line.heal()
    await one.flush(500)
    assert world.line.texts(world.conversation) == shown


@pytest.mark.parametrize("step", range(8))
@on_one_disk("a")
async def test_an_append_behind_a_cancelled_clear(world: OneDisk, step: int) -> None:
    """What is appended behind a clear that was cancelled is not lost with the conversation.

    A clear was cancelled while the conversation was being deleted. What was appended then was
    recorded for it, and waited for a conversation that was gone (the campaign that kills).
    """
    (one,) = await world.opened(world.process("1", delay=0.1))
    world.line.on(is_conversation_delete, Fault(FaultKind.SLOW, delay=0.3))
    clearing = world.begin(one.clear_session())
    await asyncio.sleep(0.05 * step)
    clearing.cancel()
    await asyncio.wait({clearing})
    await one.add_items(users("new"))
    await one.flush(500)
    assert world.line.texts(one.session_id)[-1:] == ["new"]
    assert words(await one.get_items())[-1:] == ["new"]


@pytest.mark.parametrize("step", range(1, 16))
@on_one_disk("a")
async def test_a_first_read_that_is_cancelled(world: OneDisk, step: int) -> None:
    """What was sent since a first read was cancelled is not sent again by the next one.

    The cancelled read had claimed what a dead process had left, and the sender put it on the
    server, where another writer removed it. The next read took what the outbox still held for all
    that there was to know: it was shown, and sent once more (simulation, seed 252917195778).
    """
    process, line = world.process("1"), world.line
    (one,) = await world.opened(process)
    await one.add_items(users("x"))
    world.ends(process)
    two = world.session(world.process("2", delay=0.1))
    later: list[asyncio.Task[list[Any]]] = []

    def read_and_remove() -> None:
        later.append(world.begin(two.get_items()))
        line.on(is_listing, Do(lambda: line.remove(world.conversation, "x")))

    line.asked()
    line.on(is_append, Do(read_and_remove))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02 * step):
            await two.get_items()
    await asyncio.sleep(5)
    if not later:  # it was cancelled before it had claimed anything
        await two.get_items()
    await two.flush()
    assert line.asked().count("append") == 1
    assert words(await two.get_items()) in (["a"], ["a", "x"])
    assert words(await two.get_items()) == line.texts(world.conversation)
