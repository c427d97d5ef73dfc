"""Servers that differ from the real one: nothing is lost, doubled, or asked for without end."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import openai
import pytest

from cached_session import ConversationCache, MemoryOutbox, UnexpectedAnswer
from cached_session.emulator import Fault, FaultKind, Faults, Habits
from cached_session.emulator.requests import is_append, is_item_delete, is_listing
from tests.faults.line import CUT, LOST, Do, Line, Say, agrees, error, label, policy, words
from tests.session.support import numbered, users

pytestmark = pytest.mark.long

# One is left out: who lists nothing but full pages that deny the next cannot be read from the
# beginning by anybody. It has tests of its own.
NAMES = [name for name in Habits.names() if name != "has_more_false_on_full_page"]
EACH = [Habits(**{name: True}) for name in NAMES]
TOGETHER = Habits(**dict.fromkeys(NAMES, True))
HABITS = pytest.mark.parametrize("habits", [*EACH, TOGETHER], ids=[*NAMES, "together"])


@HABITS
@pytest.mark.parametrize("size", [0, 1, 20, 99, 100, 101, 200, 250])
async def test_reading_all_of_it(habits: Habits, size: int) -> None:
    """A whole conversation is read as it is, in a bounded number of requests."""
    line = Line(habits=habits)
    conversation = line.conversation()
    for start in range(0, size, 20):
        line.append(conversation, *map(str, range(start, min(start + 20, size))))
    session = line.session(conversation)
    await agrees(session, line, conversation)
    # Two ends, and an empty page where the server says that more follow.
    assert len(line.asked()) <= size // 100 + 3
    for limit in (1, 5, 50, 150):
        read = await line.session(conversation).get_items(limit)
        assert read == line.service.items(conversation)[-limit:]


@HABITS
async def test_a_session_from_its_beginning(habits: Habits) -> None:
    """A conversation that the session makes holds exactly what was added, in order."""
    line = Line(habits=habits)
    session = line.session()
    assert await session.get_items() == []
    await session.add_items(numbered(0, 45))
    await agrees(session, line, session.session_id)
    assert line.texts(session.session_id) == [str(number) for number in range(45)]
    popped = await session.pop_item()
    assert popped is not None
    assert words(popped) == "44"
    await session.clear_session()
    assert await session.get_items() == []


@HABITS
@pytest.mark.parametrize(
    "fault",
    [CUT, LOST, Fault(FaultKind.PARTIAL_BATCH, items=2), Fault(FaultKind.LATE_COMMIT, delay=5.0)],
    ids=label,
)
async def test_a_lost_answer(habits: Habits, fault: Any) -> None:
    """An append whose answer is lost lands once, string content and rewritten ids or not."""
    line = Line(habits=habits)
    conversation = line.conversation("yes")
    session = line.session(conversation)
    await session.get_items()
    line.on(is_append, fault, None, fault)
    reply = {
        "id": f"msg_{1:048x}",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "reply", "annotations": []}],
    }
    call = {"type": "function_call", "call_id": "call_1", "name": "tool", "arguments": "{}"}
    await session.add_items([*users("yes"), reply, call])
    await session.add_items(users("yes"))
    await session.add_items(users("yes", "no", "no"))
    await line.past(6.0)
    await agrees(session, line, conversation)
    expected = ["yes", "yes", "reply", "function_call call_1", "yes", "yes", "no", "no"]
    assert line.texts(conversation) == expected


@HABITS
async def test_pops_to_the_end(habits: Habits) -> None:
    """Every item is popped once, though answers are lost and a missing item is deleted happily."""
    line = Line(habits=habits)
    conversation = line.conversation(*"abcdef")
    session = line.session(conversation)
    line.on(is_item_delete, LOST, None, CUT, None, LOST)
    found = [await session.pop_item() for _ in range(7)]
    assert [None if item is None else words(item) for item in found] == [*"fedcba", None]
    assert line.texts(conversation) == []


@HABITS
async def test_another_writer_removes_the_cursor(habits: Habits) -> None:
    """A cursor that is gone between two pages, refused or ignored, costs a new listing at most."""
    line = Line(habits=habits)
    conversation = line.conversation(*map(str, range(20)))
    for start in range(20, 320, 20):
        line.append(conversation, *map(str, range(start, start + 20)))

    def remove_cursor() -> None:
        after = line.requests[-1].parameter("after")
        if after is not None:
            line.call("DELETE", f"/v1/conversations/{conversation}/items/{after}")

    line.on(is_listing, None, None, Do(remove_cursor), None, Do(remove_cursor))
    await agrees(line.session(conversation), line, conversation)


@HABITS
async def test_another_writer_under_a_checking_session(habits: Habits) -> None:
    """A session that checks at every read agrees with the server, whatever another writer does."""
    line = Line(habits=habits)
    conversation = line.conversation("0", "1", "2")
    session = line.session(conversation, max_staleness=0)
    draw = random.Random(7)
    for number in range(3, 60):
        match draw.randrange(4):
            case 0:
                line.append(conversation, str(number))
            case 1:
                there = line.texts(conversation)
                line.remove(conversation, *draw.sample(there, min(2, len(there))))
            case 2:
                await session.add_items(users(str(number)))
            case _:
                await session.pop_item()
        await agrees(session, line, conversation)


async def test_every_cursor_is_ignored() -> None:
    """A server that starts every listing anew cannot be read: said so, not asked for ever."""
    line = Line()
    conversation = line.conversation()
    for start in range(0, 240, 20):
        line.append(conversation, *map(str, range(start, start + 20)))
    line.always(is_listing, FaultKind.CURSOR_IGNORED)
    session = line.session(conversation, retry=policy(max_attempts=3))
    for limit in (None, 150):
        with pytest.raises(UnexpectedAnswer) as caught:
            await session.get_items(limit)
        assert caught.value.conversation_id == conversation
        assert len(line.asked()) < 40
    # What fits on one page needs no cursor.
    assert len(await session.get_items(50)) == 50
    await session.add_items(users("new"))
    assert line.texts(conversation)[-1] == "new"
    popped = await session.pop_item()
    assert popped is not None
    assert words(popped) == "new"


async def test_every_cursor_is_refused() -> None:
    """A server that knows none of its own cursors ends in the same way."""
    line = Line()
    conversation = line.conversation(*map(str, range(20)))
    for _ in range(6):
        line.append(conversation, *map(str, range(20)))
    line.always(is_listing, FaultKind.CURSOR_REFUSED)
    session = line.session(conversation, retry=policy(max_attempts=3))
    with pytest.raises(UnexpectedAnswer):
        await session.get_items()
    assert len(line.asked()) < 40
    assert len(await session.get_items(100)) == 100


async def test_a_cursor_that_is_lost_once() -> None:
    """A listing that breaks once, refused or ignored, is made again from its beginning."""
    for kind in (FaultKind.CURSOR_REFUSED, FaultKind.CURSOR_IGNORED):
        for which in range(6):
            line = Line()
            conversation = line.conversation()
            for start in range(0, 500, 20):
                line.append(conversation, *map(str, range(start, start + 20)))
            line.on(is_listing, *[None] * which, kind)
            await agrees(line.session(conversation), line, conversation)
            assert len(line.asked()) <= 14


async def test_a_conversation_that_grows_while_it_is_read() -> None:
    """Another writer who appends between the pages does not keep a read from its end."""
    line = Line()
    conversation = line.conversation()
    for start in range(0, 400, 20):
        line.append(conversation, *map(str, range(start, start + 20)))
    line.always(is_listing, Do(lambda: line.append(conversation, "more")))
    read = await line.session(conversation).get_items()
    assert len(line.asked()) <= 14
    texts = [words(item) for item in read]
    assert texts[:400] == [str(number) for number in range(400)]
    assert set(texts[400:]) <= {"more"}


@HABITS
@pytest.mark.parametrize("seed", range(2))
async def test_all_faults_on_all_habits(habits: Habits, seed: int) -> None:
    """A short campaign: whatever goes wrong, every habit leaves each item once and in order."""
    line = Line(latency=0.01, habits=habits)
    kinds = [kind for kind in FaultKind if kind is not FaultKind.RATE_LIMITED_QUOTA]
    faults = Faults(seed, dict.fromkeys(kinds, 0.3 / len(kinds)))
    session = line.session(retry=policy(deadline=600.0, max_attempts=50, attempt_timeout=5.0))
    await session.get_items()
    line.plan = faults
    said: list[str] = []
    for number in range(40):
        batch = [str(number), "yes", "yes"][: 1 + number % 3]
        await session.add_items(users(*batch))
        said.extend(batch)
        if number % 5 == 4:
            popped = await session.pop_item()
            assert popped is not None
            assert words(popped) == said.pop()
        if number % 3 == 0:
            read = [words(item) for item in await session.get_items()]
            assert read == said
    line.plan = lambda request: None
    await asyncio.sleep(700)
    await agrees(session, line, session.session_id)
    assert line.texts(session.session_id) == said


def filled(line: Line, size: int) -> str:
    """A conversation of so many items."""
    conversation = line.conversation()
    for start in range(0, size, 20):
        line.append(conversation, *map(str, range(start, min(start + 20, size))))
    return conversation


@pytest.mark.parametrize("queued", [False, True], ids=["", "outbox"])
async def test_a_full_page_that_denies_what_is_held(queued: bool) -> None:
    """Where `has_more` contradicts what is held, the next page is asked for: nothing is cut off."""
    line = Line(habits=Habits(has_more_false_on_full_page=True))
    conversation = filled(line, 60)
    cache, outbox = ConversationCache(), MemoryOutbox() if queued else None
    session = line.session(conversation, cache=cache, outbox=outbox)
    assert len(await session.get_items()) == 60
    # Each new session checks what is held, with one request once it is known what to think of it.
    for asked in (["list", "list"], ["list"], ["list"]):
        line.asked()
        await agrees(line.session(conversation, cache=cache, outbox=outbox), line, conversation)
        assert line.asked() == asked
    await session.add_items(numbered(60, 130))
    await session.flush()
    await agrees(session, line, conversation)
    await agrees(line.session(conversation), line, conversation)
    popped = await session.pop_item()
    assert popped is not None
    assert words(popped) == "129"
    await session.aclose()


async def test_a_full_page_that_was_right() -> None:
    """Where others removed what was held and a full page is the last, one request more tells so."""
    line = Line()
    conversation = filled(line, 60)
    cache = ConversationCache()
    await line.session(conversation, cache=cache).get_items()
    line.remove(conversation, *map(str, range(39)))
    line.asked()
    for asked in (["list", "list"], ["list"]):
        await agrees(line.session(conversation, cache=cache), line, conversation)
        assert line.asked() == asked


@pytest.mark.parametrize("size", [151, 250, 251, 450, 650])
async def test_the_two_ends_contradict_each_other(size: int) -> None:
    """A listing of both ends is not ended by a page that denies what the other end has shown."""
    line = Line()
    conversation = filled(line, size)
    session = line.session(conversation, max_staleness=math.inf)
    assert len(await session.get_items(50)) == 50
    # From now on another server answers, say.
    line.service.habits = Habits(has_more_false_on_full_page=True)
    await agrees(session, line, conversation)


async def test_pages_that_deny_are_enough_for_a_limit() -> None:
    """Where every full page denies what follows, a limited read has as many items as it asked."""
    line = Line(habits=Habits(has_more_false_on_full_page=True))
    conversation = filled(line, 450)
    session = line.session(conversation)
    await session.get_items(50)
    line.append(conversation, "more")
    session = line.session(conversation)
    assert len(await session.get_items(99)) == 99
    await session.add_items(users("and more"))
    line.append(conversation, *map(str, range(20)))
    assert len(await line.session(conversation, max_staleness=0).get_items(100)) == 100


@pytest.mark.parametrize("queued", [False, True], ids=["", "outbox"])
@pytest.mark.parametrize("largest", [1, 2, 7, 20, 50, 99])
async def test_smaller_pages(largest: int, queued: bool) -> None:
    """A server whose pages are smaller is read whole; that it is so costs one refusal, once."""
    line = Line(habits=Habits(largest_page=largest))
    conversation = filled(line, 120)
    outbox = MemoryOutbox() if queued else None
    session = line.session(conversation, outbox=outbox)
    await agrees(session, line, conversation)
    assert refused(line, largest) == 1
    line.asked()
    line.on(is_append, LOST)
    await session.add_items(numbered(120, 150))
    await session.flush()
    await agrees(session, line, conversation)
    for limit in (1, 30, 130, None):
        read = await line.session(conversation).get_items(limit)
        assert read == line.service.items(conversation)[-(limit or 150) :]
    assert words(await session.pop_item()) == "149"
    assert refused(line, largest) == 0
    await session.aclose()


def refused(line: Line, largest: int) -> int:
    """How many listings asked for more than the server gives."""
    sizes = [request.parameter("limit") for request in line.requests if is_listing(request)]
    return sum(int(size or 20) > largest for size in sizes)


REFUSALS = [
    (400, {"error": {"message": "limit must be between 1 and 50", "param": None, "code": None}}),
    (400, {"error": {"message": "too many", "param": "limit", "code": None}}),
    (422, {"detail": [{"loc": ["query", "limit"], "msg": "Input should be less than 51"}]}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS, ids=["named", "not named", "422"])
async def test_the_words_of_a_refusal(status: int, body: Any) -> None:
    """Whether the refusal names the largest page or not, one is found that is taken."""
    line = Line()
    conversation = filled(line, 120)
    line.on(lambda request: int(request.parameter("limit") or 0) > 50, *[Say(status, body)] * 9)
    await agrees(line.session(conversation), line, conversation)
    assert len(line.asked()) <= 8
    await agrees(line.session(conversation), line, conversation)
    assert refused(line, 50) == 0


async def test_a_refusal_that_is_not_about_the_page() -> None:
    """Where no page is small enough, the first refusal is what is raised, after a few requests."""
    line = Line()
    conversation = filled(line, 3)
    line.always(is_listing, error(400, "limit_reached", param="limit"))
    with pytest.raises(openai.BadRequestError):
        await line.session(conversation).get_items()
    assert len(line.asked()) <= 8
    line.heal()
    await agrees(line.session(conversation), line, conversation)
    assert line.requests[-1].parameter("limit") == "100"
