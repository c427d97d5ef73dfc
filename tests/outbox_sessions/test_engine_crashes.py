"""An engine that crashes every few seconds while workers write: what a call says is true."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cached_session import AppendOutcomeUnknown, CachedSession, OutboxUnavailable, PostgresOutbox
from cached_session.emulator import Emulator
from tests.campaigns.plan import fresh
from tests.outbox_sessions.support import Process, raised
from tests.postgres import Server, missing, server
from tests.session.support import Elsewhere, texts, users

pytestmark = pytest.mark.campaign

SECONDS = float(os.environ.get("FLEET_CRASH_SECONDS", "20"))
"""How long the campaign goes on."""

EVERY = 3.0


@pytest.fixture
def crashing() -> Iterator[Server]:
    """A server that no other test uses."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with server() as found:
        yield found


class Writer:
    """Appends to a conversation, one item after the other, and notes what it was told of each."""

    def __init__(self, session: CachedSession, name: str) -> None:
        self.session = session
        self.told: dict[str, str] = {}
        self._name = name

    async def write(self, over: asyncio.Event) -> None:
        await self.session.get_items()
        while not over.is_set():
            text = f"{self._name}.{len(self.told)}"
            error = await raised(self.session.add_items(users(text)))
            if error is None:
                self.told[text] = "accepted"
            elif isinstance(error, AppendOutcomeUnknown):
                self.told[text] = "unknown"
            else:
                assert isinstance(error, OutboxUnavailable), error
                assert "nothing was recorded" in str(error)
                self.told[text] = "refused"
                await asyncio.sleep(0.02)

    def untrue(self, there: list[str]) -> list[str]:
        """What is otherwise than it was told, given what is on the server in the end."""
        mine = [text for text in there if text.startswith(f"{self._name}.")]
        found = Counter(mine)
        wrong = [
            f"{text} was {told} and is there {found[text]} times"
            for text, told in self.told.items()
            if found[text] not in {"accepted": (1,), "refused": (0,), "unknown": (0, 1)}[told]
        ]
        if mine != sorted(mine, key=lambda text: int(text.partition(".")[2])):
            wrong.append(f"{self._name} is out of order")
        return wrong


async def test_engine_crashes(
    crashing: Server, emulator: Emulator, tell: Callable[[str], None]
) -> None:
    """What was accepted is on the server once, in order, and what was refused is not there."""
    rng = random.Random(fresh("engine crashes", tell))
    address = crashing.with_tables()
    elsewhere = Elsewhere(emulator)
    conversations = [elsewhere.conversation() for _ in range(4)]
    over, crashes = asyncio.Event(), 0
    async with (
        Process(emulator, PostgresOutbox(address)) as one,
        Process(emulator, PostgresOutbox(address)) as two,
    ):
        writers = [
            Writer(process.session(conversation), f"{number}{name}")
            for number, conversation in enumerate(conversations)
            for name, process in (("a", one), ("b", two))
        ]
        writing = [asyncio.create_task(writer.write(over)) for writer in writers]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            await asyncio.sleep(EVERY * rng.uniform(0.5, 1.5))
            await asyncio.to_thread(crashing.stop, rng.choice((signal.SIGQUIT, signal.SIGKILL)))
            await asyncio.sleep(rng.choice((0, 0, 0.5)))
            await asyncio.to_thread(crashing.start)
            crashes += 1
        over.set()
        await asyncio.gather(*writing)
        for writer in writers:
            await writer.session.flush(timeout=60)
        told = Counter(told for writer in writers for told in writer.told.values())
        tell(f"{crashes} crashes, appends: {dict(told)}")
        assert told["accepted"] > 20 * crashes
        there = {name: texts(emulator.items(name)) for name in conversations}
        for number, writer in enumerate(writers):
            assert not writer.untrue(there[conversations[number // 2]])
            await writer.session.aclose()
