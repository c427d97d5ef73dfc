"""The first read of a conversation of which an earlier process has left items in the outbox."""

from __future__ import annotations

import asyncio
import math

import pytest

from cached_session import ConversationCache
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import Do
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import until, words
from tests.session.support import users


async def _left(world: OneDisk, *texts: str, sealed: bool) -> None:
    """A process has read the conversation and ended; so has one that had accepted items."""
    one = world.process("1")
    await world.opened(one)
    world.ends(one)
    world.had_by_a_dead_process(*texts, sealed=sealed)


@on_one_disk("a")
async def test_after_one_that_was_cancelled(world: OneDisk) -> None:
    """What the sender put on the server since a cancelled first read is shown once.

    The cancelled read claims what was left, and the sender goes on with it.
    """
    await _left(world, "x", sealed=True)
    session = world.session(world.process("2", delay=0.01))
    first = world.begin(session.get_items())
    await until(lambda: world.owner() == "2")
    first.cancel()
    later: list[asyncio.Task[list[object]]] = []
    world.line.on(is_append, Do(lambda: later.append(world.begin(session.get_items()))))
    await until(lambda: bool(later))
    assert words(await later[0]) == ["a", "x"]
    assert words(await session.get_items()) == ["a", "x"] == world.line.texts(world.conversation)


@on_one_disk("a")
async def test_what_was_sent_since_one_that_was_cancelled(world: OneDisk) -> None:
    """What the server has taken since a cancelled first read is not sent again by the next one.

    Another writer removes it at once, so that no listing tells: only the sender knows.
    """
    await _left(world, "x", sealed=False)
    session = world.session(world.process("2", delay=0.01))
    first = world.begin(session.get_items())
    await until(lambda: world.owner() == "2")
    first.cancel()
    later: list[asyncio.Task[list[object]]] = []

    def read_and_remove() -> None:
        later.append(world.begin(session.get_items()))
        world.line.on(is_listing, Do(lambda: world.line.remove(world.conversation, "x")))

    world.line.on(is_append, Do(read_and_remove))
    await until(lambda: bool(later))
    assert words(await later[0]) == ["a"]
    await session.flush()
    assert world.line.texts(world.conversation) == ["a"] == words(await session.get_items())
    assert world.line.asked().count("append") == 1


@on_one_disk("a")
async def test_of_one_that_was_read_without_the_outbox(world: OneDisk) -> None:
    """A batch that landed unnoticed, and was listed without the outbox, is shown once."""
    await _left(world, "x", sealed=True)
    world.line.append(world.conversation, "x")  # its request came through
    cache = ConversationCache()
    plain = world.line.session(world.conversation, cache=cache)
    assert words(await plain.get_items()) == ["a", "x"]
    session = world.session(world.process("2"), cache=cache, max_staleness=math.inf)
    assert words(await session.get_items()) == ["a", "x"]


@pytest.mark.parametrize("sealed", [False, True])
@on_one_disk("a")
async def test_cancelled_and_read_before_without_the_outbox(world: OneDisk, sealed: bool) -> None:
    """What was left is shown, though a first read that was to find it was cancelled."""
    await _left(world, "x", sealed=sealed)
    cache = ConversationCache()
    plain = world.line.session(world.conversation, cache=cache)
    assert words(await plain.get_items()) == ["a"]
    session = world.session(world.process("2", delay=0.01), cache=cache, max_staleness=math.inf)
    first = world.begin(session.get_items())
    await until(lambda: world.owner() == "2")
    first.cancel()
    await asyncio.sleep(0)
    assert words(await session.get_items()) == ["a", "x"]
    await session.add_items(users("y"))
    await session.flush()
    assert world.line.texts(world.conversation) == ["a", "x", "y"]
