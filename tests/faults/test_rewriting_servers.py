"""Servers that list a text otherwise than it was sent: never two copies in silence."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import openai
import pytest

from cached_session import (
    AbandonedWriteFailed,
    AppendOutcomeUnknown,
    Event,
    LateCopySuspected,
    MemoryOutbox,
    OutboxPaused,
    Sending,
)
from cached_session.emulator import Fault, FaultKind, Habits
from cached_session.emulator.requests import is_append, is_listing
from tests.faults.line import CUT, LOST, Do, Line, agrees, label, policy, words
from tests.session.support import user, users

KINDS = {
    "nul": "te{}\0xt",
    "crlf": "te{}\r\nxt\r",
    "nfc": "tex{}t e\u0301",
    "trim": "  te{}xt\n",
    "trim,nul,crlf,nfc": " te{}\r\nxt e\u0301\0 ",
    "redact": "write{} to ann@example.com",
    "cut": "te{}xt" + "xt" * 100,
    "nest": "te{}xt",
}
"""A text, with a place for what makes it another one, that a server of each kind rewrites."""

TOLD = ["nul", "crlf", "nfc", "trim", "trim,nul,crlf,nfc"]
"""The kinds that an answer tells of."""

EVERY = pytest.mark.parametrize("kind", KINDS)


def texts(kind: str, *which: object) -> list[Any]:
    return users(*(KINDS[kind].format(number) for number in which))


def stored(line: Line, conversation: str) -> int:
    """How many items stand behind the first one."""
    return len(line.service.items(conversation)) - 1


def suspected(heard: list[Event]) -> list[Event]:
    return [event for event in heard if isinstance(event, LateCopySuspected)]


async def opened(kind: str, **options: Any) -> tuple[Line, Any, str]:
    """A session that has read its conversation of one item, on a server that rewrites texts."""
    line = Line(habits=Habits(rewrites=kind))
    conversation = line.conversation("before")
    session = line.session(conversation, **options)
    await session.get_items()
    line.asked()
    return line, session, conversation


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nest"])
async def test_a_text_that_stands_there_twice(kind: str) -> None:
    """What a batch's first part tells of how a text is listed is used for the rest of that batch.

    A function call proved that a text before it had landed, rewritten, and so told of the same
    text behind it. That was learned after the count: nobody could tell what had landed, or the end
    of the batch was sent again (simulation on servers that rewrite texts, seed 5000673).
    """
    line, session, conversation = await opened(kind)
    line.on(is_append, LOST)
    call = {"type": "function_call", "call_id": "c", "name": "tool", "arguments": "{}"}
    one, end = texts(kind, 1), users("end")
    await session.add_items([*one, call, *users("b"), *one, *end])
    assert stored(line, conversation) == 5
    await agrees(session, line, conversation)


@EVERY
@pytest.mark.parametrize("count", [1, 3])
async def test_a_lost_answer(kind: str, count: int) -> None:
    """What stands where the batch would, with other texts, is not taken for a stranger's."""
    line, session, conversation = await opened(kind)
    line.on(is_append, LOST)
    said = "1 item .* stands where" if count == 1 else "3 items .* stand where"
    with pytest.raises(AppendOutcomeUnknown, match=f"{said} .*rewritten") as caught:
        await session.add_items(texts(kind, *range(count)))
    assert (caught.value.landed, caught.value.total) == (0, count)
    assert caught.value.item_ids == tuple(
        item["id"] for item in line.service.items(conversation)[1:]
    )
    assert line.asked() == ["append", "list"]
    assert stored(line, conversation) == count
    await agrees(session, line, conversation)


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("fresh", [False, True], ids=["same conversation", "another one"])
async def test_an_answer_has_shown_how(kind: str, fresh: bool) -> None:
    """After an answer that shows how the server rewrites, a rewritten batch is recognised."""
    line, session, conversation = await opened(kind)
    await session.add_items(texts(kind, "first"))
    if fresh:
        conversation = line.conversation("before", "another")
        session = line.session(conversation)
        await session.get_items()
    line.asked()
    line.on(is_append, LOST)
    await session.add_items(texts(kind, 1, 2))
    assert line.asked() == ["append", "list"]
    assert stored(line, conversation) == 3
    await agrees(session, line, conversation)


@pytest.mark.parametrize("kind", TOLD)
async def test_under_what_is_known_another_text_is_another(kind: str) -> None:
    """A text that is not the batch's under the rewriting that was shown is not taken for it."""
    line, session, conversation = await opened(kind)
    await session.add_items(texts(kind, "first"))
    line.on(is_append, Do(lambda: line.append(conversation, "theirs"), CUT))
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(texts(kind, 1))
    await agrees(session, line, conversation)


async def test_what_one_rewriting_shows_of_another() -> None:
    """That a server trims says nothing of its line ends: a batch that both change stays unknown."""
    line, session, conversation = await opened("trim,crlf")
    await session.add_items(users(" a "))
    line.on(is_append, LOST)
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users(" a\r\nb "))
    assert stored(line, conversation) == 2
    await agrees(session, line, conversation)
    line.heal()
    line.on(is_append, LOST)
    await session.add_items(users(" c "))
    assert stored(line, conversation) == 3
    await agrees(session, line, conversation)


@EVERY
@pytest.mark.parametrize("at", [1, 2])
async def test_stored_in_part(kind: str, at: int) -> None:
    """Of a batch of which the beginning is stored, rewritten, nothing is sent again unseen."""
    line, session, conversation = await opened(kind)
    line.on(is_append, Fault(FaultKind.PARTIAL_BATCH, items=at))
    batch = [user("plain"), *texts(kind, 1, 2)] if kind != "nest" else texts(kind, 0, 1, 2)
    if at == 1 and kind != "nest":
        # What landed is as it was sent, and nothing stands behind it.
        await session.add_items(batch)
        assert stored(line, conversation) == 3
    else:
        with pytest.raises(AppendOutcomeUnknown):
            await session.add_items(batch)
        assert stored(line, conversation) == at
    await agrees(session, line, conversation)


async def test_a_call_tells_of_the_text_before_it() -> None:
    """An item that is known by its call id proves that what stands before it is of its batch."""
    line, session, conversation = await opened("redact")
    call = {"type": "function_call", "call_id": "call_1", "name": "tool", "arguments": "{}"}
    line.on(is_append, LOST)
    await session.add_items([*texts("redact", 1), call])
    assert stored(line, conversation) == 2
    await agrees(session, line, conversation)
    # What stands behind it may be anybody's.
    line.heal()
    line.on(is_append, LOST)
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items([{**call, "call_id": "call_2"}, *texts("redact", 2)])
    assert stored(line, conversation) == 4


@EVERY
@pytest.mark.parametrize("count", [1, 2])
async def test_a_late_copy(kind: str, count: int) -> None:
    """A copy that comes late is known by the shape in which the answer to the second send was."""
    line, session, conversation = await opened(kind)
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    await session.add_items(texts(kind, *range(count)))
    shown = await session.get_items()
    await line.past(5.0)
    assert stored(line, conversation) == 2 * count
    assert await session.get_items() == shown == line.service.items(conversation)


@EVERY
async def test_a_late_copy_beside_a_part(kind: str) -> None:
    """The first items landed and were listed, the rest was sent again: the copies are found."""
    line, session, conversation = await opened(kind)
    batch = [*users("plain 1", "plain 2"), *texts(kind, 1)]
    if kind == "nest":
        return  # nothing that is stored in part is recognised here
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=9.0))
    await session.add_items(batch)
    line.heal()
    line.on(is_append, CUT, Fault(FaultKind.PARTIAL_BATCH, items=2))
    await session.add_items([*users("other 1", "other 2"), *texts(kind, 2)])
    shown = await session.get_items()
    await line.past(9.0)
    assert await session.get_items() == shown == line.service.items(conversation)
    assert stored(line, conversation) == 6


@EVERY
async def test_a_late_copy_that_nothing_tells(kind: str) -> None:
    """What may be a late copy of an append that was said not to be there: observers hear, once."""
    heard: list[Event] = []
    line, session, conversation = await opened(
        kind, retry=policy(max_attempts=1), observer=heard.append
    )
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(texts(kind, 1))
    await agrees(session, line, conversation)
    await line.past(5.0)
    for _ in range(3):
        await agrees(session, line, conversation)
    late = line.service.items(conversation)[-1]["id"]
    assert suspected(heard) == [LateCopySuspected(conversation, (late,))]
    assert stored(line, conversation) == 1


@EVERY
async def test_two_copies_of_what_nobody_could_look_for(kind: str) -> None:
    """What may be of an append whose caller heard that nothing is known: observers hear, once.

    Two of its requests were carried out late, and no listing was answered meanwhile.
    """
    heard: list[Event] = []
    line, session, conversation = await opened(kind, observer=heard.append)
    late = Fault(FaultKind.LATE_COMMIT, delay=5.0)
    line.on(is_append, late, late)
    line.on(is_listing, None, *[FaultKind.RATE_LIMITED_QUOTA] * 9)
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(texts(kind, 1))
    line.heal()
    await line.past(20.0)
    for _ in range(3):
        await agrees(session, line, conversation)
    ids = tuple(item["id"] for item in line.service.items(conversation)[1:])
    assert len(ids) == 2
    assert suspected(heard) == [LateCopySuspected(conversation, ids)]


@pytest.mark.parametrize("action", ["get_items", "pop_item", "flush", "aclose", "add_items"])
async def test_nobody_else_pays_for_it(action: str, caplog: pytest.LogCaptureFixture) -> None:
    """A call that finds what may be a late copy does what it is for; the log warns of it once."""
    line, session, conversation = await opened("redact", retry=policy(max_attempts=1))
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    with pytest.raises(openai.APIConnectionError):
        await session.add_items(texts("redact", 1))
    await line.past(5.0)
    late = line.service.items(conversation)[-1]
    result = await getattr(session, action)(*[users("more")] * (action == "add_items"))
    left = {"pop_item": 0, "add_items": 2}.get(action, 1)
    assert stored(line, conversation) == left
    if action == "pop_item":
        assert result == late
    if action != "aclose":
        for _ in range(2):
            await agrees(session, line, conversation)
    warned = [record for record in caplog.records if late["id"] in record.getMessage()]
    assert [record.levelname for record in warned] == ["WARNING"]


@pytest.mark.parametrize("queued", [False, True], ids=["", "outbox"])
@pytest.mark.parametrize("lost", [CUT, LOST], ids=label)
async def test_two_workers_who_say_the_same_kind_of_thing(queued: bool, lost: FaultKind) -> None:
    """Only the append whose answer was lost is unknown, once: all that follows goes on."""
    line = Line()
    conversation = line.conversation("before")
    options = {"outbox": MemoryOutbox()} if queued else {}
    session = line.session(conversation, max_staleness=0, **options)
    await session.get_items()
    # An answer is lost while another worker writes a message of the same kind.
    line.on(is_append, Do(lambda: line.append(conversation, "theirs"), lost))
    known = contextlib.nullcontext() if lost is LOST else pytest.raises(AppendOutcomeUnknown)
    paused = contextlib.nullcontext() if lost is LOST else pytest.raises(OutboxPaused)
    with paused if queued else known:
        await session.add_items(users("ours"))
        await session.flush()
    if queued and lost is CUT:
        assert (await session.get_items())[:-1] == line.service.items(conversation)
        await session.clear_session()
        return
    for number in range(3):
        line.append(conversation, f"theirs {number}")
        await agrees(session, line, conversation)
        await session.add_items(users(f"more {number}"))
        popped = await session.pop_item()
        assert popped is not None
        assert words(popped) == f"more {number}"
    await session.aclose()


@pytest.mark.parametrize("action", ["get_items", "pop_item", "flush", "clear_session"])
async def test_whoever_finds_out_that_an_outbox_has_to_pause(action: str) -> None:
    """A recorded batch that may stand there rewritten stops those who send, and nobody else."""
    line, session, conversation = await opened("redact", outbox=MemoryOutbox(), max_staleness=0)
    line.on(is_append, LOST)
    # The listing that is to tell fails, too, and the sender waits a little before the next.
    line.on(is_listing, CUT)
    await session.add_items(texts("redact", 1))
    while session.stats.sending is not Sending.OFFLINE:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0.01)
    if action in ("flush", "pop_item"):
        with pytest.raises(OutboxPaused, match="other texts"):
            await getattr(session, action)()
    else:
        await getattr(session, action)()
    if action == "get_items":
        assert session.stats.sending is Sending.PAUSED
        shown = await session.get_items()
        assert shown[:2] == line.service.items(conversation)
        with pytest.raises(OutboxPaused, match="other texts"):
            await session.add_items(users("more"))
        await session.clear_session()
        # The sender was waiting for its next attempt.
        await asyncio.sleep(60)


async def test_a_text_that_is_no_part_any_more() -> None:
    """Where string content stays as it is and becomes an object, two messages are still two."""
    line = Line(habits=Habits(rewrites="nest", content_left_as_string=True))
    conversation = line.conversation("before")
    session = line.session(conversation)
    await session.get_items()
    line.on(is_append, CUT)
    await session.add_items(users("a"))
    line.append(conversation, "b")
    await agrees(session, line, conversation)
    assert stored(line, conversation) == 2


async def test_a_strangers_message_is_told_from_a_late_copy() -> None:
    """Once an answer has shown a text as it was sent, another text is another writer's."""
    line, session, conversation = await opened("trim")
    line.on(is_append, CUT)
    await session.add_items(users("plain"))
    for text in ("theirs", "and theirs"):
        line.append(conversation, text)
        await agrees(session, line, conversation)
    assert "delete item" not in line.asked()


@pytest.mark.parametrize("lost", [CUT, LOST], ids=label)
@pytest.mark.parametrize("role", ["assistant", "developer", "system"])
async def test_another_role_is_a_strangers(lost: FaultKind, role: str) -> None:
    """An item of another role or type behind the anchor is somebody else's for certain."""
    line, session, conversation = await opened("trim")
    theirs = [{"role": role, "content": "theirs"}, {"type": "reasoning", "summary": []}]

    def append() -> None:
        line.call("POST", f"/v1/conversations/{conversation}/items", {"items": theirs})

    line.on(is_append, Do(append, lost))
    await session.add_items(users("ours"))
    assert line.texts(conversation)[-1] == "ours"
    assert stored(line, conversation) == 3
    await agrees(session, line, conversation)


async def test_ids_that_are_there_already() -> None:
    """A second send refused for its ids: the text beside them, rewritten, is of the same batch."""
    line, session, conversation = await opened("redact")
    content = [{"type": "output_text", "text": "reply", "annotations": []}]
    reply = {"id": f"msg_{1:048x}", "type": "message", "role": "assistant", "content": content}
    # Applied between the listing that does not show it and the second send.
    line.on(is_append, CUT, Do(lambda: line.service.handle(line.requests[0])))
    await session.add_items([*texts("redact", 1), reply])
    assert stored(line, conversation) == 2
    await agrees(session, line, conversation)


@EVERY
async def test_with_an_outbox(kind: str) -> None:
    """A backlog whose batch may stand there rewritten is paused, and says why; reads go on."""
    line, session, conversation = await opened(kind, outbox=MemoryOutbox())
    line.on(is_append, LOST)
    await session.add_items(texts(kind, 1, 2))
    with pytest.raises(OutboxPaused, match="other texts") as caught:
        await session.flush()
    assert isinstance(caught.value.__cause__, AppendOutcomeUnknown)
    assert stored(line, conversation) == 2
    assert caught.value.waiting == 2
    shown = await session.get_items()
    assert shown[:3] == line.service.items(conversation)
    await session.clear_session()
    await session.aclose()


@pytest.mark.parametrize("kind", TOLD)
async def test_with_an_outbox_that_knows(kind: str) -> None:
    """Where an answer has shown how the server rewrites, what waits goes on by itself."""
    line, session, conversation = await opened(kind, outbox=MemoryOutbox())
    await session.add_items(texts(kind, "first"))
    await session.flush()
    line.on(is_append, LOST, Fault(FaultKind.LATE_COMMIT, delay=3.0), None)
    for number in range(1, 4):
        await session.add_items(texts(kind, number))
        await session.flush()
    await line.past(5.0)
    await agrees(session, line, conversation)
    assert stored(line, conversation) == 4
    await session.aclose()


@EVERY
async def test_a_late_copy_with_an_outbox(kind: str) -> None:
    """A late copy of what an outbox sent is recognised and removed on such a server, too."""
    line, session, conversation = await opened(kind, outbox=MemoryOutbox())
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    await session.add_items(texts(kind, 1, 2))
    await session.flush()
    shown = await session.get_items()
    await line.past(5.0)
    assert await session.get_items() == shown == line.service.items(conversation)
    await session.aclose()


async def test_a_popped_item_does_not_take_its_shape_along() -> None:
    """What was popped has shown how the server lists it, and so its late copy is known."""
    line, session, conversation = await opened("redact")
    line.on(is_append, Fault(FaultKind.LATE_COMMIT, delay=5.0))
    await session.add_items(texts("redact", 1))
    await session.pop_item()
    await line.past(5.0)
    await agrees(session, line, conversation)
    assert stored(line, conversation) == 0


async def test_listing_fails_while_it_is_in_doubt() -> None:
    """Where the server cannot be asked either, the next read shows what it has, and it stays."""
    line, session, conversation = await opened("trim", retry=policy(max_attempts=1))
    line.on(is_append, LOST)
    line.on(is_listing, CUT)
    with pytest.raises(AppendOutcomeUnknown):
        await session.add_items(users(" a "))
    for _ in range(2):
        await agrees(session, line, conversation)
        await asyncio.sleep(10)
    assert stored(line, conversation) == 1


async def test_two_copies_of_which_the_beginning_is_recognised() -> None:
    """Where both sends stand there, rewritten at their end, all of it is named, none removed."""
    line, session, conversation = await opened("redact")
    # The first send is applied beside the second one, whose answer is lost as well.
    line.on(is_append, CUT, Do(lambda: line.service.handle(line.requests[0]), LOST))
    with pytest.raises(AppendOutcomeUnknown) as caught:
        await session.add_items([*users("plain"), *texts("redact", 1)])
    there = [item["id"] for item in line.service.items(conversation)[1:]]
    assert len(there) == 4
    assert list(caught.value.item_ids) == there
    await agrees(session, line, conversation)
    assert stored(line, conversation) == 4


async def test_a_caller_who_has_left_is_told_by_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Where the append's caller was cancelled, a warning says so; reads show what there is."""
    heard: list[Event] = []
    line, session, conversation = await opened("redact", observer=heard.append)
    line.on(is_append, LOST)
    append = asyncio.ensure_future(session.add_items(texts("redact", 1)))
    while not line.in_flight:  # noqa: ASYNC110 - nobody announces it
        await asyncio.sleep(0)
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    await agrees(session, line, conversation)
    assert stored(line, conversation) == 1
    there = line.service.items(conversation)[1]["id"]
    assert AbandonedWriteFailed(conversation, "AppendOutcomeUnknown", (there,)) in heard
    assert there in caplog.text
