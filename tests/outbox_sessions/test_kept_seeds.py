"""What seeds of the simulation have shown once, as scripts: sessions with an outbox.

See `tests/faults/test_kept_seeds.py`; `test_kept_takeovers.py` has processes that end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cached_session import ConversationCache, MemoryOutbox, SQLiteOutbox
from cached_session.emulator import Fault, FaultKind
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import CUT, Line
from tests.outbox_sessions.support import in_flight, in_virtual_time, words
from tests.session.support import users

SLOW = Fault(FaultKind.SLOW, delay=1.0)


@in_virtual_time
async def test_what_stood_before_an_item_that_was_taken_back() -> None:
    """A later item is shown behind what stands there then, not behind what stood there before.

    An item was accepted and taken back; meanwhile another session appended on the server. What was
    noted to stand before the first item was shown before the next one, which was accepted while a
    read was on its way (simulation, seed 61445).
    """
    line, cache = Line(), ConversationCache()
    conversation = line.conversation("a")
    session = line.session(conversation, outbox=MemoryOutbox(), cache=cache)
    await session.get_items()
    await session.add_items(users("x"))
    assert words([await session.pop_item()]) == ["x"]
    plain = line.session(conversation, cache=cache)
    await plain.add_items(users("b"))
    line.on(is_listing, SLOW)
    third = line.session(conversation, cache=cache)
    reading = asyncio.ensure_future(third.get_items())
    await in_flight(line)
    await session.add_items(users("y"))
    assert words(await session.get_items()) == ["a", "b", "y"]
    await reading
    await session.aclose()
    await plain.aclose()


async def test_who_had_it_in_between(new_outbox: Callable[..., SQLiteOutbox]) -> None:
    """A process notices that another one had the conversation, though nothing is left of that.

    The other one's record went when it let go of it, as nothing was left to be kept in it. The
    first one took itself for the only one, and an equal item of the other for its own after a lost
    answer (simulation, seed 50).
    """
    line = Line()
    conversation = line.conversation("a")
    one, two = (line.session(conversation, outbox=new_outbox(max_window_bytes=0)) for _ in range(2))
    await one.get_items()
    await one.add_items(users("b"))
    await one.flush()
    await two.add_items(users("yes"))
    await two.aclose(timeout=60)
    line.on(is_append, CUT)
    await one.add_items(users("yes"))
    await one.flush()
    assert line.texts(conversation) == ["a", "b", "yes", "yes"]
    assert words(await one.get_items()) == ["a", "b", "yes", "yes"]
    await one.aclose()
