"""What seeds of the simulation have shown once, as scripts: sessions without an outbox.

A seed replays a schedule, and is worth nothing where the schedule is another one. Each test here
is what went wrong, step by step; the seeds that showed it are named in it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai
import pytest

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Fault, FaultKind, Request
from cached_session.emulator.requests import is_append, is_item_delete, is_listing
from tests.faults.line import CUT, LOST, Do, Fail, Line, error, opened, policy, words
from tests.session.support import numbered, users

SLOW = Fault(FaultKind.SLOW, delay=1.0)


async def read(session: CachedSession, limit: int | None = None) -> list[str]:
    """What a read shows."""
    items: list[Any] = await session.get_items(limit)
    return [words(item) for item in items]


def long_conversation(line: Line, count: int) -> str:
    """A conversation of so many messages, which are numbered."""
    conversation = line.conversation()
    for start in range(0, count, 20):
        line.append(conversation, *map(str, range(start, min(start + 20, count))))
    return conversation


async def test_a_piece_of_another_late_copy() -> None:
    """A late copy of a longer append is not taken for a shorter one that is looked for.

    An append of two items was given up on. The next one, of the first of them, lost its answer,
    and both items of the former came late: the first was taken for the new append, and the second
    stayed (simulation, seed 1652).
    """
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    late = Do(lambda: line.service.handle(line.requests[0]), CUT)
    line.on(is_append, CUT, CUT, late)
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(users("a", "b"))
    await session.add_items(users("a"))
    assert await read(session) == ["before", "a"]
    assert line.texts(conversation) == ["before", "a"]


async def test_an_equal_copy_before_a_known_item() -> None:
    """An append stands behind all that was known before it: an equal copy further up is not it.

    An item was sent twice, its first request came late, and something else was appended behind
    that. Then the same text was appended again, and its answer was lost: the copy was taken for
    it, and the append itself was removed as the copy (the ledger's campaign, seed 92000033381).
    """
    line, session, conversation = await opened("before")
    line.on(is_append, CUT, None, None, LOST)
    await session.add_items(users("yes"))
    line.service.handle(next(filter(is_append, line.requests)))
    await session.add_items(users("b"))
    await session.add_items(users("yes"))
    assert await read(session) == ["before", "yes", "b", "yes"]
    assert line.texts(conversation) == ["before", "yes", "b", "yes"]


@pytest.mark.parametrize("came", ["the first append", "a part of the second"])
async def test_a_whole_copy_or_a_part(came: str) -> None:
    """Where an item may be a late copy or a part of a batch, nothing of either stays behind.

    An append of one item was given up on. The next one began with the same text and lost its
    answer, and one such item stood there. It was taken for a part of the second append, and when
    that one's first request came late, a piece of it stayed (the ledger's campaign, seed
    92000002331).
    """
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))

    def appended(number: int) -> Request:
        return [one for one in line.requests if is_append(one)][number]

    part = Fault(FaultKind.PARTIAL_BATCH, items=1)
    late = Do(lambda: line.service.handle(appended(0)), CUT)
    line.on(is_append, CUT, CUT, part if came.startswith("a part") else late)
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(users("yes"))
    await session.add_items(users("yes", "x"))
    assert await read(session) == ["before", "yes", "x"]
    for number in (0, 1) if came.startswith("a part") else (2,):
        line.service.handle(appended(number))
    assert await read(session) == ["before", "yes", "x"]
    assert line.texts(conversation) == ["before", "yes", "x"]


async def _give_up(line: Line, session: CachedSession, *texts: str) -> Request:
    """An append that is given up on; returns its first request, which was not carried out."""
    count = len(line.requests)
    line.on(is_append, CUT, CUT)
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(users(*texts))
    line.heal()
    return next(filter(is_append, line.requests[count:]))


async def test_a_late_copy_that_completes_a_part() -> None:
    """A part and a late copy behind it are told from a whole batch and something else.

    An append of two items was given up on. Of the next one the server stored the first item, and
    the answer was lost; its second item was equal to the first one of the former. That came late,
    before the listing: its first item was taken for the missing one, and its second stayed (the
    ledger's campaign, seed 42840386184).
    """
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    former = await _give_up(line, session, "no", "a")
    line.on(is_append, Fault(FaultKind.PARTIAL_BATCH, items=1))
    line.on(is_listing, Do(lambda: line.service.handle(former)))
    await session.add_items(users("b", "no"))
    assert await read(session) == ["before", "b", "no"]
    assert line.texts(conversation) == ["before", "b", "no"]


async def test_a_late_copy_that_completes_a_part_of_the_same_batch() -> None:
    """A part and a late copy of one batch are told apart where the batch repeats an item."""
    line, session, conversation = await opened("before")

    def again() -> object:
        return line.service.handle(next(filter(is_append, line.requests)))

    line.on(is_append, CUT, Fault(FaultKind.PARTIAL_BATCH, items=2))
    line.on(is_listing, None, Do(again))
    await session.add_items(users("a", "b", "a"))
    assert await read(session) == ["before", "a", "b", "a"]
    assert line.texts(conversation) == ["before", "a", "b", "a"]


async def test_late_copies_that_share_an_item() -> None:
    """Of two late copies each is found, though a piece of one and the other look alike."""
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    former = await _give_up(line, session, "yes", "yes")
    latter = await _give_up(line, session, "a", "yes")
    for late in (latter, former):
        line.service.handle(late)
    assert await read(session) == ["before"]
    assert line.texts(conversation) == ["before"]
    assert await read(session) == ["before"]


async def test_copies_that_stand_for_a_whole_batch() -> None:
    """A batch for which the late copies of two others were taken is watched for itself.

    Both together read like it. It had not landed, and came when the two were past.
    """
    line, session, conversation = await opened("before", retry=policy(max_attempts=2))
    former = [await _give_up(line, session, text) for text in ("a", "b")]
    await line.past(50.0)
    late = Do(lambda: [line.service.handle(one) for one in former], CUT)
    line.on(is_append, late)
    await session.add_items(users("a", "b"))
    await line.past(70.0)
    assert await read(session) == ["before", "a", "b"]
    line.service.handle([one for one in line.requests if is_append(one)][-1])
    assert await read(session) == ["before", "a", "b"]
    assert line.texts(conversation) == ["before", "a", "b"]


async def test_one_moment_and_not_two() -> None:
    """A read that removes a late copy shows what the server holds after that.

    Another writer appended between the listing and the removal: the answer was the listing without
    the copy, which was never there (simulation, seeds 2354, 2533, 2797, 3361, 3568).
    """
    line, session, conversation = await opened("before")
    line.on(is_append, CUT)
    await session.add_items(users("a"))
    line.service.handle(line.requests[0])
    line.on(is_item_delete, Do(lambda: line.append(conversation, "theirs")))
    assert await read(session) == ["before", "a", "theirs"]
    assert line.texts(conversation) == ["before", "a", "theirs"]


async def test_a_check_that_another_caller_makes() -> None:
    """A read that checks each time is not answered from a check before our own append.

    It waited behind another read and an append. The other read's check was taken for its own,
    and what another writer had put before our append was missing (simulation, seeds 1006, 1080,
    1446).
    """
    line, session, _ = await opened("a", max_staleness=0)
    line.on(is_append, SLOW, Do(lambda: line.append(session.session_id, "theirs")))
    calls: list[Any] = [
        session.add_items(users("first")),
        read(session),
        session.add_items(users("ours")),
        read(session),
    ]
    tasks = []
    for call in calls:
        tasks.append(asyncio.ensure_future(call))
        await asyncio.sleep(0.1)
    *_, last = await asyncio.gather(*tasks)
    assert last == ["a", "first", "theirs", "ours"]


async def test_an_opening_check_begins_after_the_call() -> None:
    """A first read is not answered from a listing that was on its way when it was called.

    Checks were counted when they ended, so the other session's one counted for this one, too,
    and what another writer had appended in between was missing (the simulation's first campaign,
    whose seeds show it no more).
    """
    line, cache = Line(), ConversationCache()
    conversation = line.conversation("a")
    one, two = (line.session(conversation, cache=cache) for _ in range(2))
    line.on(is_listing, SLOW)
    reading = asyncio.create_task(read(one))
    await asyncio.sleep(0.5)
    line.append(conversation, "theirs")
    assert await read(two) == ["a", "theirs"]
    assert await reading == ["a"]


async def test_older_items_confirm_no_newer_ones() -> None:
    """What another writer put before our append is found, also where all older items were read.

    A read of everything fetched what stands before the held items, and took those for listed as
    well: no later check looked behind them (simulation, seeds 1158, 1373, 1497, 1609).
    """
    line, cache = Line(), ConversationCache()
    conversation = long_conversation(line, 140)
    session = line.session(conversation, cache=cache)
    assert await read(session, 1) == ["139"]
    line.append(conversation, "theirs")
    await session.add_items(numbered(140, 180))
    await session.get_items()
    expected = [*map(str, range(140)), "theirs", *map(str, range(140, 180))]
    assert await read(line.session(conversation, cache=cache)) == expected


@pytest.mark.parametrize("refused", [True, False])
async def test_a_removal_that_comes_late(refused: bool) -> None:
    """An item that a pop gave up on is gone from reads when its removal comes late.

    The first request lost its answer and the second one was refused, which was taken for the
    outcome. And behind many newer items nobody looked at the item any more (simulation, seed
    2320).
    """
    line, session, conversation = await opened("a", "b", retry=policy(max_attempts=2))
    lost = Fail(httpx2.ReadError("reset"), late=40.0)
    line.on(is_item_delete, lost, error(403) if refused else CUT)
    with pytest.raises(openai.OpenAIError):
        await session.pop_item()
    await session.add_items(numbered(0, 40))
    assert await read(session) == ["a", "b", *map(str, range(40))]
    await line.past(40.0)
    assert await read(session) == ["a", *map(str, range(40))]
    assert line.texts(conversation) == ["a", *map(str, range(40))]


async def test_what_stood_before_goes_while_a_copy_may_come() -> None:
    """A late copy is known by what stands before it now: what stood there first may be removed.

    The item before the append was removed by another writer before the late copy came, which
    could not be told from older items then, and stayed (the simulation's first campaign, whose
    seeds show it no more).
    """
    line = Line()
    conversation = long_conversation(line, 20)
    session = line.session(conversation)
    await session.get_items(1)
    line.on(is_append, CUT)
    await session.add_items(users("x"))
    sent = line.requests[line.sent.index("append")]
    await session.get_items(1)
    line.remove(conversation, "19")
    await session.get_items(1)
    line.service.handle(sent)
    assert await read(session, 2) == ["18", "x"]
    assert line.texts(conversation) == [*map(str, range(19)), "x"]


async def test_listed_anew_behind_newer_items() -> None:
    """A page that begins the listing anew is known for it, though newer items stand before.

    A server forgot the cursor of a page and began anew. As another writer had appended meanwhile,
    the cursor's item was not the first of that page, which was taken for the older items: one
    message was shown twice (simulation, seeds 3012113, 3014610, 4012317).
    """
    line = Line()
    conversation = line.conversation("a", "b", "c")
    session = line.session(conversation)
    assert await read(session, 1) == ["c"]
    line.append(conversation, "theirs")
    line.on(is_listing, FaultKind.CURSOR_IGNORED)
    assert await read(session, 3) in (["a", "b", "c"], ["b", "c", "theirs"])
