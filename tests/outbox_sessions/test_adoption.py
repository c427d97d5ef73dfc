"""What others have left is sent by whoever uses the outbox, for whichever conversation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import (
    CachedSession,
    CallFinished,
    CallStarted,
    ConversationCache,
    Event,
    RequestFinished,
    SQLiteOutbox,
)
from cached_session.emulator import Emulator, Fault, FaultKind
from cached_session.emulator.requests import is_append
from cached_session.session import adoption
from tests.faults.line import CUT, LOST, any_request
from tests.outbox_sessions.one_disk import OneDisk, on_one_disk
from tests.outbox_sessions.support import Process, batches, session_on, until, words
from tests.outbox_sessions.workers import Setting, worker
from tests.session.support import Elsewhere, texts, users
from tests.simulation.outbox_disk import SimOutbox

# Longer than it takes to look, to look again, and to send, where the server answers.
SOON = 4.0


def counted(process: SimOutbox) -> list[object]:
    """The transactions of a process, from now on."""
    made: list[object] = []
    transact = process.transact

    async def count(work: Any, applied: Any = None) -> Any:
        made.append(work)
        return await transact(work, applied)

    process.transact = count  # type: ignore[method-assign]
    return made


async def left_by_a_dead_process(
    world: OneDisk, *names: str, conversations: Sequence[str] = ()
) -> None:
    """A process accepts items for conversations, and ends before it has sent any."""
    dead = world.process(f"dead {len(conversations)}")
    sessions = [world.session(dead, one) for one in conversations or [world.conversation]]
    for session in sessions:
        await session.get_items()
    world.line.always(is_append, CUT)
    for session in sessions:
        await session.add_items(users(*names))
    world.ends(dead)
    world.line.heal()


@on_one_disk("a")
async def test_what_a_dead_process_has_left(
    world: OneDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that uses another conversation sends what a dead one has left, unasked."""
    await left_by_a_dead_process(world, "b", "c")
    caplog.set_level(logging.INFO, "cached_session")
    other = await world.kept_open(world.process("living"))
    assert world.line.texts(world.conversation) == ["a"]
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b", "c"]
    # The session's own figures are of its own conversation.
    assert other.stats.requests == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        f"{world.conversation}: nobody was left to send 2 items that wait in the outbox; sent from "
        "here on"
    )


@pytest.mark.parametrize("call", ["get_items", "add_items"])
@on_one_disk("a")
async def test_where_each_session_makes_one_call(world: OneDisk, call: str) -> None:
    """A process whose sessions are open for one call each sends what a dead one has left, too."""
    await left_by_a_dead_process(world, "b", "c")
    process, another, cache = (
        world.process("living"),
        world.line.conversation("o"),
        ConversationCache(),
    )
    for _ in range(30):
        async with world.session(process, another, cache=cache) as session:
            await getattr(session, call)(*([users("x")] if call == "add_items" else []))
        await asyncio.sleep(0.5)
    assert world.line.texts(world.conversation) == ["a", "b", "c"]


@on_one_disk("a")
async def test_a_batch_that_may_have_landed(world: OneDisk) -> None:
    """Of what a dead process may have sent it is found out what landed: each item is there once."""
    dead = world.process("dead")
    (session,) = await world.opened(dead)
    world.line.on(is_append, Fault(FaultKind.SLOW, delay=1000.0))
    await session.add_items(users("b"))
    await asyncio.sleep(1)
    await session.add_items(users("c"))
    world.ends(dead)
    assert world.line.texts(world.conversation) == ["a", "b"]
    await world.kept_open(world.process("living"))
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b", "c"]


@on_one_disk("a")
async def test_two_processes_adopt_at_once(world: OneDisk) -> None:
    """Two processes that find the same backlogs at the same moment send each of them once."""
    left = [world.line.conversation("a") for _ in range(10)]
    await left_by_a_dead_process(world, "b", "c", conversations=left)
    world.line.sent.clear()
    world.line.on(is_append, LOST, None, LOST)
    processes = [world.process(name) for name in ("1", "2")]
    await asyncio.gather(*map(world.kept_open, processes))
    await asyncio.sleep(5 * SOON)
    # Whoever came second keeps nothing of it: there is a backlog for the session that is open.
    assert [len(process.backlogs) for process in processes] == [1, 1]
    assert [world.line.texts(conversation) for conversation in left] == [["a", "b", "c"]] * 10
    # Two of the answers were lost, and a listing told that the items were there.
    assert world.line.sent.count("append") == len(left)


@on_one_disk("a")
async def test_a_few_at_a_time(world: OneDisk) -> None:
    """Of many backlogs four are sent at a time, and then the next ones."""
    left = [world.line.conversation("x") for _ in range(10)]
    await left_by_a_dead_process(world, "y", conversations=left)
    world.line.on(is_append, *[Fault(FaultKind.SLOW, delay=3.0)] * 10)
    most = 0
    await world.kept_open(world.process("living"))
    for _ in range(200):
        await asyncio.sleep(0.1)
        most = max(most, world.line.in_flight)
    assert most == 4
    assert all(world.line.texts(conversation) == ["x", "y"] for conversation in left)


@on_one_disk("a")
async def test_a_living_owner(world: OneDisk) -> None:
    """A backlog whose owner lives is not taken, however long it cannot send; nor asked for."""
    owner = world.process("owner")
    (session,) = await world.opened(owner)
    world.line.always(is_append, CUT)
    await session.add_items(users("b"))
    await world.kept_open(world.process("living"))
    await asyncio.sleep(60)
    assert world.owner() == "owner"
    world.line.heal()
    await asyncio.sleep(20)
    assert world.owner() == "owner"
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_an_owner_that_ends_later(world: OneDisk) -> None:
    """While others have something that waits, somebody looks now and then, and no call has to."""
    owner = world.process("owner")
    (session,) = await world.opened(owner)
    world.line.always(is_append, CUT)
    await session.add_items(users("b"))
    await world.kept_open(world.process("living"))
    await asyncio.sleep(60)
    world.line.heal()
    world.ends(owner)
    await asyncio.sleep(adoption.AGAIN_AFTER + SOON)
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_an_owner_that_has_not_begun(world: OneDisk) -> None:
    """What a living process has just recorded is not taken before that one can send it."""
    (session,) = await world.opened(world.process("slow", delay=0.4))
    events: list[Event] = []
    other = world.session(
        world.process("living"), world.line.conversation("o"), observer=events.append
    )
    for number in range(40):
        await session.add_items(users(str(number)))
        await other.refresh()
        await asyncio.sleep(0.7)
    # But for the calls themselves.
    assert {type(event) for event in events} == {CallStarted, CallFinished}
    assert world.line.texts(world.conversation) == ["a", *map(str, range(40))]


@on_one_disk("a")
async def test_idle(world: OneDisk) -> None:
    """While nothing waits, an open outbox does nothing with the file, and the loop has no timer."""
    await left_by_a_dead_process(world, "b")
    process = world.process("living")
    await world.kept_open(process)
    await asyncio.sleep(60)
    made = counted(process)
    await asyncio.sleep(3600)
    assert made == []
    # A call that uses the file has it looked at, a few of them at once one time.
    for _ in range(3):
        session = world.session(process, world.line.conversation())
        await session.get_items()
    looks = [work for work in made if "Adopter" in getattr(work, "__qualname__", "")]
    made.clear()
    await asyncio.sleep(3600)
    assert (len(looks), made) == (1, [])


@on_one_disk("a")
async def test_another_account(world: OneDisk) -> None:
    """What was accepted under another key is not sent under this one."""
    await left_by_a_dead_process(world, "b")
    stranger = world.line.client()
    stranger.api_key = "another"
    process = world.process("living")
    session = world.session(process, None, client=stranger)
    await session.get_items()
    await asyncio.sleep(60)
    assert world.line.texts(world.conversation) == ["a"]
    await world.kept_open(process)
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_without_a_fixed_key(world: OneDisk) -> None:
    """A client that fetches its key cannot tell whose a backlog is, and adopts none."""

    async def key() -> str:
        return "fetched"

    line = world.line.openai
    client = AsyncOpenAI(api_key=key, base_url=line.base_url, http_client=line._client)
    client._platform = "Linux"  # as in `Network.client_over`
    dead = world.process("dead")
    session = world.session(dead, client=client)
    await session.get_items()
    await session.add_items(users("b"))
    world.ends(dead)
    process = world.process("living")
    other = world.session(process, world.line.conversation("o"), client=client)
    await other.get_items()
    await asyncio.sleep(60)
    assert world.line.texts(world.conversation) == ["a"]


@on_one_disk("a")
async def test_a_paused_one(world: OneDisk) -> None:
    """A backlog that is paused stays as it is, until somebody decides."""
    await left_by_a_dead_process(world, "b")
    world.pause("reason")
    process = world.process("living")
    other = await world.kept_open(process)
    await asyncio.sleep(SOON)
    made = counted(process)
    await asyncio.sleep(60)
    # Nor is it looked at again and again.
    assert made == []
    assert world.line.texts(world.conversation) == ["a"]
    world.pause(None)
    await other.refresh()
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_a_refusal(world: OneDisk, caplog: pytest.LogCaptureFixture) -> None:
    """What the server refuses is paused, and told of once; what others have left is sent."""
    await left_by_a_dead_process(world, "b")
    another = world.line.conversation("x")
    await left_by_a_dead_process(world, "y", conversations=[another])
    world.line.on(is_append, Fault(FaultKind.RATE_LIMITED_QUOTA))
    process = world.process("living")
    await world.kept_open(process)
    await asyncio.sleep(60)
    told = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert len(told) == 1
    shown = [world.line.texts(world.conversation), world.line.texts(another)]
    assert shown in ([["a"], ["x", "y"]], [["a", "b"], ["x"]])
    assert [told[0].count(name) for name in (world.conversation, another)] in ([1, 0], [0, 1])


@on_one_disk("a")
async def test_one_that_has_only_a_local_name(world: OneDisk) -> None:
    """A conversation that the server has not made yet is made once, whoever finds it."""
    dead = world.process("dead")
    world.line.always(any_request, CUT)
    session = world.session(dead, None)
    await session.add_items(users("first"))
    name = session.local_name
    assert name is not None
    world.ends(dead)
    world.line.heal()
    world.line.sent.clear()
    processes = [world.process(name) for name in ("1", "2")]
    await asyncio.gather(*map(world.kept_open, processes))
    await asyncio.sleep(SOON)
    assert world.line.sent.count("create") == 1
    found = world.session(processes[0], name)
    assert words(await found.get_items()) == ["first"]
    assert world.line.texts(found.session_id) == ["first"]


@pytest.mark.parametrize("moment", range(0, 40, 3))
@on_one_disk("a")
async def test_a_session_that_comes_meanwhile(world: OneDisk, moment: int) -> None:
    """A session that comes to the conversation while it is adopted goes on behind what waits."""
    await left_by_a_dead_process(world, *map(str, range(25)))
    cache, process = ConversationCache(), world.process("living", delay=0.05)
    other = world.session(process, world.line.conversation("o"), cache=cache)
    await other.get_items()
    world.line.on(is_append, Fault(FaultKind.SLOW, delay=1.0), LOST)
    await asyncio.sleep(1 + 0.05 * moment)
    session = world.session(process, cache=cache)
    await session.add_items(users("mine"))
    expected = ["a", *map(str, range(25)), "mine"]
    assert words(await session.get_items()) == expected
    await session.flush()
    assert world.line.texts(world.conversation) == expected


@on_one_disk("a")
async def test_a_session_of_another_cache(world: OneDisk) -> None:
    """A session with another cache takes over what is adopted, and each item lands once."""
    await left_by_a_dead_process(world, *map(str, range(25)))
    process = world.process("living")
    await world.kept_open(process)
    world.line.on(is_append, Fault(FaultKind.SLOW, delay=5.0))
    await asyncio.sleep(2)
    assert world.line.in_flight
    session = world.session(process)
    await session.add_items(users("mine"))
    await session.flush()
    expected = ["a", *map(str, range(25)), "mine"]
    assert world.line.texts(world.conversation) == expected
    assert words(await session.get_items()) == expected


@on_one_disk("a")
async def test_a_session_that_is_open_and_not_used(world: OneDisk) -> None:
    """What another process left of a conversation that is open here is sent without its session."""
    process = world.process("living")
    (session,) = await world.opened(process)
    await left_by_a_dead_process(world, "b")
    await world.kept_open(process)
    await asyncio.sleep(adoption.AGAIN_AFTER + SOON)
    await world.kept_open(process)
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b"]
    await session.add_items(users("c"))
    assert words(await session.get_items()) == ["a", "b", "c"]


@on_one_disk("a")
async def test_an_outage(world: OneDisk) -> None:
    """What is adopted while the server is away is sent when it is back."""
    await left_by_a_dead_process(world, "b")
    await world.kept_open(world.process("living"))
    world.line.always(any_request, CUT)
    await asyncio.sleep(300)
    world.line.heal()
    await asyncio.sleep(20)
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_closing_the_outbox(world: OneDisk) -> None:
    """Closing the outbox ends what was adopted and says what is left; nothing is begun then."""
    await left_by_a_dead_process(world, "b")
    process = world.process("living")
    other = await world.kept_open(process)
    world.line.always(any_request, CUT)
    await asyncio.sleep(SOON)
    left = await process.aclose(timeout=1)
    assert [(one.conversation_id, one.items) for one in left.conversations] == [
        (world.conversation, 1)
    ]
    assert left.conversations[0].reason.startswith("the server could not be reached")
    world.line.heal()
    made = counted(process)
    await asyncio.sleep(600)
    assert made == []
    assert world.line.texts(world.conversation) == ["a"]
    # It can be used again.
    await other.refresh()
    await asyncio.sleep(SOON)
    assert world.line.texts(world.conversation) == ["a", "b"]


@on_one_disk("a")
async def test_closing_the_outbox_before_it_looks_again(world: OneDisk) -> None:
    """Nobody looks by itself at a file that was closed, though a session on it was left open."""
    (session,) = await world.opened(world.process("owner"))
    world.line.always(is_append, CUT)
    await session.add_items(users("b"))
    process = world.process("living")
    await world.kept_open(process)
    made = counted(process)
    await asyncio.sleep(3 * adoption.AGAIN_AFTER)
    assert made
    await process.aclose()
    made.clear()
    await asyncio.sleep(600)
    assert made == []


@on_one_disk("a")
async def test_closing_the_sessions(world: OneDisk) -> None:
    """When all sessions are closed, what was adopted by then is sent, and no more is begun."""
    left = [world.line.conversation("x") for _ in range(10)]
    await left_by_a_dead_process(world, "y", conversations=left)
    process = world.process("living")
    other = await world.kept_open(process)
    world.line.on(is_append, *[Fault(FaultKind.SLOW, delay=5.0)] * 10)
    await asyncio.sleep(2)
    await other.aclose()
    await asyncio.sleep(60)
    sent = [conversation for conversation in left if len(world.line.texts(conversation)) == 2]
    assert len(sent) == 4
    made = counted(process)
    await asyncio.sleep(600)
    assert made == []


@on_one_disk("a")
async def test_the_observer(world: OneDisk) -> None:
    """The observer of the session whose client sends hears of the requests, by conversation."""
    await left_by_a_dead_process(world, "b")
    events: list[Event] = []
    other = world.session(
        world.process("living"), world.line.conversation("o"), observer=events.append
    )
    await other.get_items()
    await asyncio.sleep(SOON)
    appends = [
        event.conversation_id
        for event in events
        if isinstance(event, RequestFinished) and event.operation == "append"
    ]
    assert appends == [world.conversation]


async def test_the_file_is_let_go_of(
    path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind closed sessions what was adopted is sent, and then the file is let go of."""
    monkeypatch.setattr(adoption, "SURE_AFTER", 0.01)
    conversation, another = (Elsewhere(emulator).conversation("a") for _ in range(2))
    async with Process(emulator, SQLiteOutbox(path)) as ended:
        session = ended.session(conversation)
        await session.get_items()
        emulator.faults = lambda request: Fault(FaultKind.RESET_BEFORE_COMMIT)
        await session.add_items(users("b"))
        await ended.outbox.aclose()
    emulator.faults = None
    async with Process(emulator, SQLiteOutbox(path)) as living:
        async with living.session(another) as other:
            await other.get_items()
            await until(lambda: len(emulator.items(conversation)) == 2)
        await until(lambda: not list(path.parent.glob("*-owner-*")))
    assert texts(emulator.items(conversation)) == ["a", "b"]


def test_a_loop_that_has_ended(
    path: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an event loop has left that ended is sent by the next one that uses the outbox."""
    monkeypatch.setattr(adoption, "SURE_AFTER", 0.01)
    monkeypatch.setattr(adoption, "AGAIN_AFTER", 0.02)
    left, another = (Elsewhere(emulator).conversation("a") for _ in range(2))
    outbox, cache = SQLiteOutbox(path), ConversationCache()

    def session(conversation: str) -> CachedSession:
        return session_on(emulator, outbox, conversation_id=conversation, cache=cache)

    first = session(left)

    async def leave() -> None:
        await first.get_items()
        emulator.faults = lambda request: Fault(FaultKind.RESET_BEFORE_COMMIT)
        await first.add_items(users("b"))

    async def use_another() -> None:
        async with session(another) as second:
            for _ in range(1000):
                await second.refresh()
                await second.get_items()
                if len(emulator.items(left)) == 2:
                    return
                await asyncio.sleep(0.01)

    asyncio.run(leave())
    emulator.faults = None
    asyncio.run(use_another())
    assert texts(emulator.items(left)) == ["a", "b"]
    asyncio.run(outbox.aclose())  # type: ignore[arg-type]  # a coroutine


@pytest.mark.processes
@pytest.mark.parametrize("kind", [FaultKind.HANG, FaultKind.RESET_AFTER_COMMIT], ids=str)
async def test_a_worker_that_is_killed(kind: FaultKind, path: Path, emulator: Emulator) -> None:
    """What a killed worker had accepted is sent by one that never opens that conversation."""
    conversation, another = (Elsewhere(emulator).conversation("start") for _ in range(2))
    retry = {"initial_delay": 0.01, "max_delay": 0.05}
    async with worker(Setting(str(path), emulator.base_url, conversation, retry)) as child:
        emulator.faults = lambda request: Fault(kind) if is_append(request) else None
        for number in range(3):
            await child.call("add_items", users(f"killed {number}"))
        await until(lambda: batches(emulator) > 0)
        child.kill()
    emulator.faults = None
    expected = ["start", "killed 0", "killed 1", "killed 2"]
    async with (
        Process(emulator, SQLiteOutbox(path)) as process,
        process.session(another) as session,
    ):
        await session.get_items()
        await until(lambda: len(emulator.items(conversation)) == len(expected))
    assert texts(emulator.items(conversation)) == expected
