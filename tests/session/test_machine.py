"""Random operations of several sessions against a plain list, checked after every step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator
from tests.session.support import Elsewhere, new_client, texts, users

T = TypeVar("T")

STALENESS = (None, 0, 3600)
"""`max_staleness` of the sessions that a machine holds at once."""

some_session = st.sampled_from(range(len(STALENESS)))
some_limit = st.sampled_from([None, 0, 1, 2, 7, 30, 150])
some_items = st.one_of(st.integers(0, 4), st.sampled_from([20, 21, 45]))


class Machine(RuleBasedStateMachine):
    """Three sessions on one conversation, with one cache, and another process that writes.

    `expected` is what stands on the server. Whenever the other process has written, one of the
    ways in which a session asks the server follows, since a copy that is trusted need not know
    of it before.
    """

    emulator: Emulator
    client: AsyncOpenAI
    run_in_loop: Callable[[Coroutine[Any, Any, Any]], Any]

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = Elsewhere(self.emulator)
        self.numbers = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        result: T = self.run_in_loop(call)
        return result

    def new_texts(self, count: int) -> list[str]:
        self.numbers += count
        return [str(number) for number in range(self.numbers - count, self.numbers)]

    @initialize(
        before=st.sampled_from([0, 1, 3, 60, 101, 250]),
        max_bytes=st.sampled_from([0, 30_000, 1 << 26]),
    )
    def begin(self, before: int, max_bytes: int) -> None:
        self.cache = ConversationCache(max_bytes)
        self.expected = self.new_texts(before)
        self.conversation = self.elsewhere.conversation(*self.expected)
        self.sessions = [self.opened(staleness) for staleness in STALENESS]

    def opened(self, staleness: float | None) -> CachedSession:
        return CachedSession(
            conversation_id=self.conversation,
            openai_client=self.client,
            cache=self.cache,
            max_staleness=staleness,
        )

    @rule(index=some_session, limit=some_limit)
    def read(self, index: int, limit: int | None) -> None:
        items = self.run(self.sessions[index].get_items(limit))
        server = self.emulator.items(self.conversation)
        assert items == server[max(0, len(server) - limit) if limit is not None else 0 :]

    @rule(index=some_session, count=some_items)
    def append(self, index: int, count: int) -> None:
        new = self.new_texts(count)
        self.run(self.sessions[index].add_items(users(*new)))
        self.expected += new

    @rule(index=some_session)
    def pop(self, index: int) -> None:
        item = self.run(self.sessions[index].pop_item())
        if self.expected:
            assert texts([item]) == [self.expected.pop()]
        else:
            assert item is None

    @rule(index=some_session)
    def clear(self, index: int) -> None:
        before = self.conversation
        session = self.sessions[index]
        self.run(session.clear_session())
        self.run(session.get_items(0))
        self.conversation = session.session_id
        assert self.conversation != before
        self.expected = []
        for other in self.sessions:
            if other is not session:
                other.session_id = self.conversation

    @rule(index=some_session)
    def refresh(self, index: int) -> None:
        self.run(self.sessions[index].refresh())

    @rule(index=some_session)
    def reopen(self, index: int) -> None:
        self.run(self.sessions[index].aclose())
        self.sessions[index] = self.opened(STALENESS[index])

    @rule(
        added=st.sampled_from([0, 1, 30]),
        removed=st.sampled_from([0, 1, 5]),
        own=some_items,
        index=some_session,
        how=st.sampled_from(["refresh", "reopen", "read that checks", "pop that checks"]),
    )
    def write_elsewhere(self, added: int, removed: int, own: int, index: int, how: str) -> None:
        for _ in range(min(removed, len(self.expected))):
            self.elsewhere.remove(self.conversation, -1)
            self.expected.pop()
        new = self.new_texts(added)
        self.elsewhere.append(self.conversation, *new)
        self.expected += new
        self.append(index, own)
        match how:
            case "refresh":
                self.refresh(index)
            case "reopen":
                # With seconds of trust a new session object need not ask: others just have.
                asks = index if STALENESS[index] != 3600 else 0
                self.reopen(asks)
                self.read(asks, 1)
            case "read that checks":
                self.read(1, 2)
            case "pop that checks":
                self.pop(1)

    @rule(count=st.integers(2, 5), index=some_session)
    def at_once(self, count: int, index: int) -> None:
        """Several sessions at once: appends in the order of the calls, reads in between."""
        calls: list[Coroutine[Any, Any, Any]] = []
        for number in range(count):
            new = self.new_texts(2)
            self.expected += new
            calls.append(self.sessions[(index + number) % 3].add_items(users(*new)))
            calls.append(self.sessions[number % 3].get_items(3))

        async def gather() -> list[Any]:
            return await asyncio.gather(*calls)

        read = self.run(gather())[-1]
        assert texts(read) == self.expected[-3:]

    @invariant()
    def copy_is_what_the_server_has(self) -> None:
        """What is held, be it all or the newest part, is what stands on the server."""
        if not hasattr(self, "sessions"):
            return
        server = self.emulator.items(self.conversation)
        assert texts(server) == self.expected
        session = self.sessions[0]
        held = session.stats.items
        if held:
            assert self.run(session.get_items(held)) == server[-held:]


@pytest.mark.parametrize("examples", [10, pytest.param(100, marks=pytest.mark.campaign)])
def test_machine(emulator: Emulator, examples: int) -> None:
    """Whatever is called in whatever order, reads and the local copy are what the server has."""
    client = new_client(emulator)
    with asyncio.Runner() as runner:
        Machine.emulator, Machine.client = emulator, client
        Machine.run_in_loop = staticmethod(runner.run)
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=examples, stateful_step_count=20, deadline=None, print_blob=True
            ),
        )
        runner.run(client.close())
